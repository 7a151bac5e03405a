"""The self-check finds what is not as training assumes, and leaves everything else as it was."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support.tiny import save_tiny_model
from tests.support.training import SESSIONS, built, options

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    model = str(save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", layers=2))
    return built(model, sessions=SESSIONS[:4], options=options(method="lora", neftune_alpha=5.0, lora={"dropout": 0.1}))


@pytest.fixture
def trainer(shared):
    """One that no test has changed."""
    micro_tokens = shared.micro_tokens
    yield shared
    shared.use_kernels()
    shared.lay_out(packed=True)
    shared.adopt(shared.checked.verdicts)
    shared.micro_tokens = micro_tokens


def check(trainer):
    from distill.train import self_check

    return self_check.check(trainer, trainer.ids, trainer.processing_class, method="lora")


def detached(x, own):
    return own(x).detach()


def failing(x, own):
    raise RuntimeError("a view is being modified inplace")


@pytest.mark.parametrize(("fault", "is_right"), [(detached, True), (failing, False)])
def test_kernels_without_a_gradient_or_that_a_model_fails_with_are_off(trainer, fault, is_right):
    real = trainer.use_kernels

    def wrong(earlier=None):
        """Kernels of which one is at fault."""
        real(earlier)
        norm = next(one for name, one in trainer.model.named_modules() if name.endswith("layers.1.input_layernorm"))
        norm.forward = partial(fault, own=norm.forward)

    trainer.use_kernels = wrong
    checked = check(trainer)
    del trainer.use_kernels
    assert (checked.verdicts["kernel"], checked.verdicts["gradients"]) == (is_right, False)
    assert (trainer.kernels, trainer.way) == ({}, "own")
    (finding,) = checked.findings
    assert finding.startswith("our kernels' gradients are not those of plain autograd")


def test_weights_random_state_and_mode_stay_as_they_were(trainer):
    trainer.model.train()
    weights = {name: one.detach().clone() for name, one in trainer.model.named_parameters()}
    state = torch.get_rng_state()
    checked = check(trainer)
    assert checked.verdicts == {"kernel": True, "gradients": True, "packed": True, "decoder": True}
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.model.training
    assert all(torch.equal(one, weights[name]) for name, one in trainer.model.named_parameters())
    assert all(one.grad is None for one in trainer.model.parameters())


def test_what_failed_in_a_run_stays_off_when_it_is_resumed(trainer):
    kernels = {name: not name.startswith("norm") for name in trainer.passed}
    trainer._resume_with(kernels, {"kernel": False, "packed": False})
    assert (trainer.kernels["norm"], trainer.way, trainer.padding_free) == (0, "fused", False)
    assert set(trainer.batch((0, 1))) == {"input_ids", "labels", "attention_mask"}
    trainer.adopt({"padded": False})
    assert [len(group) for group in trainer._passes((0, 1, 2))] == [1, 1, 1]


def test_added_tokens_that_were_never_trained_are_named(trainer):
    from distill.train import row_check
    from distill.train.kernels.patch import causal_of

    causal, tokenizer = causal_of(trainer.model), trainer.processing_class
    weight = causal.get_input_embeddings().weight
    before, mark = weight.detach().clone(), tokenizer.convert_tokens_to_ids("<|im_start|>")
    for untrained in (torch.zeros_like(weight[0]), weight.mean(0)):
        with torch.no_grad():
            weight[mark] = untrained
        (line,) = row_check.findings(causal, trainer.ids, trainer.examples, tokenizer)
        assert line.startswith("the rows hold <|im_start|>, whose embeddings look untrained")
    weight.data = before
