"""An optimizer step is the same however many forward passes it takes, and goes on when memory ends."""

from __future__ import annotations

import pytest

from distill.errors import ModelError
from tests.support.training import SESSIONS, built, losses, options, run

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model

PACKINGS = pytest.mark.parametrize("packing", ["best_fit", "none"])


@pytest.fixture(scope="module")
def trainers(tiny):
    """One for each packing, its adapter doing something already."""
    return {packing: built(tiny, options=options(packing=packing)) for packing in ("best_fit", "none")}


def step(trainer, rows, micro_tokens):
    """Loss, gradients and the number of forward passes of a step."""
    trainer.micro_tokens = micro_tokens
    passes = []
    hook = trainer.model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, {"rows": rows})
    hook.remove()
    gradients = [p.grad.flatten().clone() for p in trainer.model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients), len(passes)


@PACKINGS
def test_a_step_has_the_same_loss_and_gradients_in_any_number_of_passes(trainers, packing):
    trainer = trainers[packing]
    rows = tuple(range(8))
    loss, gradient, passes = step(trainer, rows, 1000)
    assert passes == 1
    for micro, expected in (100, 2), (50, 4), (1, 8):
        other, other_gradient, passes = step(trainer, rows, micro)
        assert passes == expected
        assert other == pytest.approx(loss, abs=1e-5)
        assert torch.allclose(other_gradient, gradient, atol=1e-5)


def test_packed_and_padded_steps_have_the_same_loss_and_gradients(trainers):
    (loss, gradient, _), (other, other_gradient, _) = (
        step(trainers[packing], tuple(range(8)), 1000) for packing in ("best_fit", "none")
    )
    for one, two in zip(*(t.model.parameters() for t in trainers.values()), strict=True):
        assert torch.equal(one, two)
    assert other == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(other_gradient, gradient, atol=1e-5)


def test_padding_is_masked_by_position_even_where_the_pad_token_is_the_end_token(trainers):
    trainer, end = trainers["none"], trainers["none"].processing_class.eos_token_id
    pad, trainer.data_collator.pad_token_id = trainer.data_collator.pad_token_id, end
    rows = range(12)
    batch = trainer.batch(rows)
    trainer.data_collator.pad_token_id = pad
    lengths = [len(trainer.examples[row].input_ids) for row in rows]
    assert len(set(lengths)) > 1
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    for row, length, labels in zip(rows, lengths, batch["labels"].tolist(), strict=True):
        assert labels[:length] == trainer.examples[row].labels
        assert labels[length - 1] == end
        assert set(labels[length:]) <= {-100}


def test_the_whole_step_is_the_mean_over_its_trained_tokens(trainers):
    trainer = trainers["none"]
    rows = (0, 5)
    total = 0.0
    for row in rows:
        example = trainer.examples[row]
        inputs = {"input_ids": torch.tensor([example.input_ids]), "labels": torch.tensor([example.labels])}
        with torch.no_grad():
            total += trainer.model(**inputs).loss.item() * example.trained
    expected = total / sum(trainer.examples[row].trained for row in rows)
    assert step(trainer, rows, 40)[0] == pytest.approx(expected, abs=1e-5)


def callback(limit, *, unless_recomputed=False):
    """A callback after which a forward pass of more than `limit` tokens runs out of memory."""
    from transformers import TrainerCallback

    class SmallMemory(TrainerCallback):
        def __init__(self):
            self.sizes = []

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.model = model
            model.get_input_embeddings().register_forward_pre_hook(self.check)

        def check(self, module, args):
            self.sizes.append(args[0].numel())
            if args[0].numel() > limit and not (unless_recomputed and self.model.is_gradient_checkpointing):
                raise torch.OutOfMemoryError(f"{args[0].numel()} tokens")

    return SmallMemory()


@PACKINGS
def test_where_memory_ends_the_same_steps_go_on_in_smaller_passes(tiny, tmp_path, packing):
    plain, _ = run(tmp_path / "plain", tiny, options=options(packing=packing))
    memory = callback(60)
    result, lines = run(tmp_path / "small", tiny, options=options(packing=packing), callbacks=[memory])
    assert max(memory.sizes) > 60
    assert len(lines) == sum(size > 60 for size in memory.sizes)
    assert lines[0].startswith("out of memory: going on from step 1 with ")
    assert lines[0].endswith("the steps stay the same")
    assert result.steps == plain.steps
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)


def test_a_run_whose_memory_ended_is_resumed_as_it_went_on(tiny, tmp_path):
    from transformers import TrainerCallback

    class Stopped(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    run(tmp_path / "whole", tiny, callbacks=[callback(60)])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", tiny, callbacks=[callback(60), Stopped()])
    memory = callback(60)
    _, lines = run(tmp_path / "cut", tiny, callbacks=[memory])
    assert max(memory.sizes) <= 60
    assert lines == ["going on from step 4"]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_where_one_session_is_too_large_activations_are_computed_again(tiny, tmp_path):
    run(tmp_path / "plain", tiny, sessions=SESSIONS[:4], options=options())
    memory = callback(5, unless_recomputed=True)
    _, lines = run(tmp_path / "small", tiny, sessions=SESSIONS[:4], options=options(), callbacks=[memory])
    assert lines[-1] == (
        "out of memory: going on from step 1 with activations computed again instead of kept; the steps stay the same"
    )
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)


def test_a_single_session_that_does_not_fit_ends_the_run_with_advice(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"memory is too small .* lower train.max_length"):
        run(tmp_path / "student", tiny, sessions=SESSIONS[:2], callbacks=[callback(5)])


def attentions(trainer):
    """How often attention is computed in a step, its backward pass left out."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += "attention" in str(func) and "backward" not in str(func)
            return func(*args, **(kwargs or {}))

    with Counting() as counting:
        found = step(trainer, tuple(range(8)), 1000)
    return counting.count, found


@pytest.mark.parametrize(("how", "times"), [("full", 2), ("selective", 1)])
def test_activations_computed_again_give_the_same_gradients(tiny, trainers, how, times):
    layers, sessions = 4, 8
    plain, (loss, gradient, _) = attentions(trainers["best_fit"])
    again, (other, other_gradient, _) = attentions(built(tiny, options=options(checkpointing=how)))
    assert (plain, again) == (layers * sessions, times * layers * sessions)
    assert other == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(other_gradient, gradient, atol=1e-6)


def test_only_some_layers_are_computed_again(tiny):
    from distill.train.sft_trainer import recompute

    trainer = built(tiny)
    kept, _ = attentions(trainer)
    recompute(trainer.model, "full", layers=3)
    again, _ = attentions(trainer)
    assert again * 4 == kept * (4 + 3)


@PACKINGS
def test_noise_goes_by_the_length_of_each_session(tiny, packing):
    alpha, hidden = 5.0, 64
    trainer = built(tiny, options=options(packing=packing, neftune_alpha=alpha))
    ids = trainer.batch((0, 10))["input_ids"]
    embed = trainer.model.train().get_input_embeddings()
    noise = (embed(ids) - torch.nn.functional.embedding(ids, embed.weight)).abs()
    rows = [noise[0, :21], noise[0, 21:]] if packing == "best_fit" else [noise[0, :21], noise[1]]
    lengths = [len(trainer.examples[row].input_ids) for row in (0, 10)]
    assert lengths == [21, 23]
    for found, length in zip(rows, lengths, strict=True):
        bound = alpha / (length * hidden) ** 0.5
        assert 0.98 * bound < found.max().item() <= bound * (1 + 1e-5)
    trainer.model.eval()
    assert torch.equal(embed(ids), torch.nn.functional.embedding(ids, embed.weight))


@pytest.mark.parametrize(
    ("scheduler", "expected"), [("cosine", [1, 0.5, 0]), ("linear", [1, 0.5, 0]), ("constant", [1, 1, 1])]
)
def test_the_learning_rate_falls_as_it_is_told_to(tiny, scheduler, expected):
    trainer = built(tiny, options=options(scheduler=scheduler, warmup=0.5, learning_rate=1.0))
    trainer.create_optimizer_and_scheduler(num_training_steps=8)
    rates = []
    for _ in range(9):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert rates[4::2] == pytest.approx(expected)
