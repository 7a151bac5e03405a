"""Our own functions of a training step: they give what transformers and PEFT give, and keep less."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from distill.models.chat_template import IGNORED

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT 0.21
]

LENGTHS = (23, 41, 9, 60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    from tests.support.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", layers=3)


def adapted(folder, *, quantise=True, dtype=torch.float32, **lora):
    """A model with an adapter that does something from the start."""
    from peft import LoraConfig, get_peft_model

    from distill.models import loading

    base = loading.load_causal(folder, quantise=quantise, dtype=dtype)
    torch.manual_seed(0)
    settings = {"r": 8, "lora_alpha": 24, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    model = get_peft_model(base, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def packed(vocabulary=1000):
    """Four sessions end to end, of which the first third is a prompt."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, vocabulary, (length,), generator=generator) for length in LENGTHS]
    labels = [torch.cat([torch.full((len(one) // 3,), IGNORED), one[len(one) // 3 :]]) for one in ids]
    return {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
    }


def patched(model):
    """Patch what passes its trial; returns how many modules of each kind."""
    from distill.train.kernels import losses
    from distill.train.kernels.patch import causal_of, patch, run_trials

    passed = run_trials(model)
    assert all(passed.values()), passed
    losses.install(causal_of(model))
    return patch(model, passed)


def ends():
    return torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)


def padded():
    """The same sessions as rows of one length."""
    row = packed()
    parts = [row[name][0].split(LENGTHS) for name in ("input_ids", "labels")]
    ids, labels = (
        torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=fill)
        for part, fill in zip(parts, (0, IGNORED), strict=True)
    )
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": ids, "labels": labels, "attention_mask": mask.long()}


def plain_losses(model, batch):
    """Nats of each trained token by the model's own forward."""
    labels = batch["labels"][:, 1:]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits[:, :-1]
    trained = labels != IGNORED
    return torch.nn.functional.cross_entropy(logits[trained].float(), labels[trained], reduction="none")


def gradients(model, losses):
    """Of all that learns, after the summed losses' backward pass."""
    model.zero_grad()
    losses.sum().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}


def both(model, batch, **more):
    """Losses and gradients before and after, and how many modules were replaced."""
    before = plain_losses(model, batch)
    before_gradients = gradients(model, before)
    found = patched(model)
    after = model(**batch, **more, token_losses="kernel")
    return (before, before_gradients), (after, gradients(model, after)), found


def assert_alike(before, after, tolerance):
    (losses, found), (other, other_found) = before, after
    assert other.tolist() == pytest.approx(losses.tolist(), abs=tolerance)
    assert found.keys() == other_found.keys()
    for name, gradient in found.items():
        assert (gradient - other_found[name]).abs().max() <= tolerance * max(1.0, gradient.abs().max()), name


@pytest.mark.parametrize("quantise", [True, False], ids=["nf4", "whole"])
@pytest.mark.parametrize("batch", [packed, padded])
def test_losses_and_gradients_are_those_of_the_libraries(tiny, quantise, batch):
    more = {"cu_seq_lens_q": ends(), "max_length_q": max(LENGTHS)} if batch is packed else {}
    before, after, found = both(adapted(tiny, quantise=quantise), batch(), **more)
    assert found == {"linear": 21, "mlp": 3, "norm": 7, "attention": 1, "loss": 1}
    assert_alike(before, after, 2e-4)


def test_packed_sessions_are_parted_by_their_positions_alone(tiny):
    before, after, _ = both(adapted(tiny), packed())
    assert_alike(before, after, 2e-4)


def test_dropout_is_drawn_as_peft_draws_it(tiny):
    model = adapted(tiny, lora_dropout=0.0)
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(0.3)
    state = torch.get_rng_state()
    before = plain_losses(model, packed())
    before_gradients = gradients(model, before)
    patched(model)
    torch.set_rng_state(state)
    after = model(**packed(), token_losses="kernel")
    assert_alike((before, before_gradients), (after, gradients(model, after)), 2e-4)


def test_bfloat16_is_near_its_libraries(tiny):
    from distill.models.device import has_bf16

    if not has_bf16(torch.device("cpu")):
        pytest.skip("this CPU does not compute in bfloat16")
    before, after, found = both(adapted(tiny, dtype=torch.bfloat16), packed())
    assert found["linear"] == 21
    losses, other = before[0].float(), after[0]
    assert (losses - other).abs().mean() < 0.05
    a, b = (torch.cat([one.float().flatten() for one in each.values()]) for each in (before[1], after[1]))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99


def test_weights_that_learn_and_other_adapters_keep_their_own_forward(tiny):
    assert patched(adapted(tiny, use_dora=True))["linear"] == 0
    whole = adapted(tiny, quantise=False).get_base_model().requires_grad_(True)
    assert patched(whole) == {"linear": 0, "mlp": 0, "norm": 0, "attention": 1, "loss": 1}


def test_adapters_can_be_switched_off_and_merged_as_before(tiny):
    model = adapted(tiny, quantise=False).eval()
    ids = packed()["input_ids"][:, :40]
    with torch.no_grad():
        own = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        patched(model)
        assert torch.allclose(model(input_ids=ids).logits, own, atol=1e-4)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, base)
        merged = copy.deepcopy(model).merge_and_unload()
        assert torch.allclose(merged(input_ids=ids).logits, own, atol=1e-4)


def test_generation_is_as_before(tiny):
    model = adapted(tiny).eval()
    ids, mask = padded()["input_ids"].flip(1), padded()["attention_mask"].flip(1)
    asked = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    own = model.generate(**asked)
    patched(model)
    assert torch.equal(model.generate(**asked), own)


def kept_bytes(loss_of) -> int:
    """Of what autograd keeps for the backward pass, each storage once, weights left out."""
    storages = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of()
    return sum(size for size, _ in storages.values())


def test_less_than_half_is_kept_for_the_backward_pass(tiny):
    model = adapted(tiny)
    own = kept_bytes(lambda: plain_losses(model, packed()))
    patched(model)
    more = {"cu_seq_lens_q": ends(), "max_length_q": max(LENGTHS)}
    assert kept_bytes(lambda: model(**packed(), **more, token_losses="kernel")) < own / 2


def test_a_product_in_float32_is_that_of_torch():
    from distill.train.kernels.autograd import product

    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in ((1, 8, 3), (37, 64, 128), (128, 576, 49)):
        left, right = (torch.randn(size, inner, generator=generator) for size in (rows, columns))
        assert torch.allclose(product(left, right), left @ right.t(), atol=1e-4)
        turned = torch.randn(inner, columns, generator=generator)
        assert torch.allclose(product(left, turned.t()), left @ turned, atol=1e-4)


class WrongGradient(torch.autograd.Function):
    """Doubles its input, and says that its gradient is 1."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        return dy


@pytest.mark.parametrize(
    ("function", "expected"),
    [(lambda x: x + x, True), (lambda x: 2.1 * x, False), (WrongGradient.apply, False), (lambda x: x.no_such(), False)],
    ids=["the same", "another output", "another gradient", "an error"],
)
def test_a_trial_compares_outputs_and_gradients(function, expected):
    from distill.models.trial import agree

    state = torch.get_rng_state()
    assert agree(lambda x: 2 * x, function, [torch.linspace(-1, 1, 12).view(3, 4)]) is expected
    assert torch.equal(torch.get_rng_state(), state)


def test_trials_leave_the_adapter_as_it_was(tiny):
    from distill.train.kernels.patch import run_trials

    model = adapted(tiny)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run_trials(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_kernel_that_fails_its_trial_is_not_used(tiny):
    from distill.train.kernels.patch import patch, run_trials

    model = adapted(tiny)
    passed = {name: not name.startswith(("norm", "loss")) for name in run_trials(model)}
    assert patch(model, passed) == {"linear": 21, "mlp": 3, "norm": 0, "attention": 1, "loss": 0}


def test_a_resumed_run_uses_no_kernel_that_failed_before(tiny):
    from tests.support.training import built, options

    trainer = built(str(tiny), options=options())
    assert trainer.kernels["loss"] == 1
    again = built(str(tiny), options=options(), earlier={**trainer.passed, "loss": False})
    assert (again.kernels["loss"], again.kernels["norm"]) == (0, trainer.kernels["norm"])
    assert again.passed == {**trainer.passed, "loss": False}


def test_with_kernels_off_nothing_is_replaced_and_the_losses_are_the_same(tiny, tmp_path):
    from tests.support.training import built, losses, options, run

    assert built(str(tiny), options=options(kernels="off")).kernels == {}
    for kernels in ("auto", "off"):
        run(tmp_path / kernels, str(tiny), layers=None, options=options(kernels=kernels))
    assert losses(tmp_path / "off") == pytest.approx(losses(tmp_path / "auto"), abs=1e-3)
    (layout,) = [json.loads(path.read_text()) for path in (tmp_path / "auto").glob("checkpoints/*-12/layout.json")]
    assert layout["kernels"]["loss"] is True


def test_a_head_that_learns_has_the_same_losses_and_gradients_in_parts():
    from torch.nn.functional import cross_entropy

    from distill.train.kernels import losses as ways

    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    rows, labels = torch.randn(2 * ways.HEAD_ROWS + 3, 8), torch.arange(2 * ways.HEAD_ROWS + 3) % 50

    def results(losses):
        hidden = rows.clone().requires_grad_()
        values = losses(hidden)
        return values.detach(), *torch.autograd.grad(values.sum(), [hidden, head.weight])

    expected = results(lambda hidden: cross_entropy(head(hidden), labels, reduction="none"))
    for one, other in zip(expected, results(lambda hidden: ways.head_losses(hidden, head, labels)), strict=True):
        torch.testing.assert_close(one, other)
