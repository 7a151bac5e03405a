"""A bad step is done again without the sessions to blame, as if they had never been in it."""

from __future__ import annotations

import math

import pytest

from distill.core.jsonl import read_jsonl
from distill.errors import ModelError
from distill.models import chat_template
from distill.types import Message, Session
from tests.support.tiny import save_tiny_model
from tests.support.training import OPTIONS, SESSIONS, built, losses, run

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model

EVIL = " zebra"
POISON = Session("poison", (Message("user", "Number 3?"), Message("assistant", f"It{EVIL * 4}.")))
POISONED = [*SESSIONS[:9], POISON, *SESSIONS[9:]]
"""Only one session holds the token that the models below are spoilt at."""
GUARDED = OPTIONS.model_copy(update={"eval_steps": 0})


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> str:
    """A tiny model whose embeddings are apart from its output head."""
    return str(save_tiny_model(tmp_path_factory.mktemp("healthy") / "model", tied=False))


def spoilt(healthy, folder, spoil):
    """A copy whose tensors have been changed, most often at one token."""
    import shutil
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    from distill.models.loading import load_tokenizer

    (token,) = load_tokenizer(Path(healthy)).encode(EVIL, add_special_tokens=False)
    shutil.copytree(healthy, folder)
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors, token)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def no_number(tensors, token):
    tensors["model.embed_tokens.weight"][token] = math.nan


def broken(tensors, token):
    tensors["model.norm.weight"].fill_(math.inf)


def surprising(tensors, token):
    """Where it stands it says that it will not stand there again, and it does: some 45 nats."""
    direction = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    tensors["model.embed_tokens.weight"][token] = 1e4 * direction
    tensors["lm_head.weight"][token] = -5 * direction


@pytest.fixture(scope="module")
def nan_model(healthy, tmp_path_factory):
    return spoilt(healthy, tmp_path_factory.mktemp("nan") / "model", no_number)


@pytest.fixture(scope="module")
def spike_model(healthy, tmp_path_factory):
    return spoilt(healthy, tmp_path_factory.mktemp("spike") / "model", surprising)


@pytest.fixture(scope="module")
def loud_model(healthy, tmp_path_factory):
    """One that is sure of itself, so that ruined weights can be far off."""

    def louder(tensors, token):
        tensors["lm_head.weight"] *= 20

    return spoilt(healthy, tmp_path_factory.mktemp("loud") / "model", louder)


def without(model, out, tmp_path, *, sessions=POISONED, options=GUARDED):
    """Weights after plain training, without any guard, in which each step has lost the rows that `out` says."""
    from pathlib import Path

    from distill.models import loading, third_party
    from distill.train import build, dataset
    from distill.train.packing import PackingPlan

    tokenizer = loading.load_tokenizer(Path(model))
    found = dataset.examples_of(sessions, "chatml", tokenizer, options)
    with third_party.quiet():
        trainer = build.build(
            Path(model), [0, 2, 3], tokenizer, found, options=options, seed=1, output=tmp_path / "plain", say=print
        )
        steps = tuple(
            tuple(row for row in rows if found.ids[row] not in out(step))
            for step, rows in enumerate(trainer.plan.steps, start=1)
        )
        trainer.plan = PackingPlan(steps, trainer.plan.epochs)
        trainer.train()
    return {
        name.replace(".default", ""): parameter.detach()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }


def assert_same(folder, expected):
    from safetensors.torch import load_file

    found = load_file(folder / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert max((found[name] - expected[name]).abs().max().item() for name in found) == 0.0


def events(folder):
    return [row for row in read_jsonl(folder / "train_log.jsonl") if row.get("event") == "quarantined"]


@pytest.fixture(scope="module")
def after_nan(nan_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("after-nan") / "student"
    return folder, *run(folder, nan_model, sessions=POISONED, options=GUARDED)


def test_a_session_whose_loss_is_no_number_is_set_aside_by_name(after_nan):
    folder, result, said = after_nan
    (entry,) = read_jsonl(folder / "quarantined.jsonl")
    assert (entry["id"], entry["reason"], entry["loss"]) == ("poison", "the loss is no number", None)
    assert said == [f"step {entry['step']}: the loss is no number; done again without session poison"]
    assert [(row["step"], row["ids"], row["line"]) for row in events(folder)] == [(entry["step"], ["poison"], said[0])]
    assert (result.quarantined, result.rows) == (1, 25)
    assert all(math.isfinite(loss) for loss in losses(folder))


def test_the_student_is_that_of_training_without_the_session(after_nan, healthy, tmp_path):
    """Trained on a sound model, where nothing has to be guarded against."""
    assert_same(after_nan[0], without(healthy, lambda step: {"poison"}, tmp_path))


def test_an_interrupted_run_keeps_it_aside_and_ends_the_same(after_nan, nan_model, tmp_path):
    from transformers import TrainerCallback

    (entry,) = read_jsonl(after_nan[0] / "quarantined.jsonl")

    class Stopped(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == entry["step"]:
                raise KeyboardInterrupt

    folder = tmp_path / "student"
    with pytest.raises(KeyboardInterrupt):
        run(folder, nan_model, sessions=POISONED, options=GUARDED, callbacks=[Stopped()])
    result, said = run(folder, nan_model, sessions=POISONED, options=GUARDED)
    assert result.quarantined == 1
    assert not any("done again" in line for line in said)
    assert (folder / "adapter_model.safetensors").read_bytes() == (
        after_nan[0] / "adapter_model.safetensors"
    ).read_bytes()
    assert [row["ids"] for row in events(folder)] == [["poison"]]


def test_a_leap_of_the_loss_is_undone_from_its_step_on(spike_model, tmp_path):
    options = GUARDED.model_copy(update={"epochs": 3})
    result, said = run(tmp_path / "student", spike_model, sessions=POISONED, options=options)
    (entry,) = read_jsonl(tmp_path / "student/quarantined.jsonl")
    assert (entry["id"], entry["reason"], result.quarantined) == ("poison", "loss spike", 1)
    assert entry["step"] > 8
    assert entry["loss"] > entry["limit"] > entry["median"] + 0.9
    assert f"step {entry['step']}: loss spike: " in said[0]
    assert f"done again without session poison (loss {entry['loss']:.2f})" in said[0]
    seen = [row["step"] for row in read_jsonl(tmp_path / "student/example_losses.jsonl") if row["id"] == "poison"]
    assert seen
    assert max(seen) < entry["step"]
    expected = without(
        spike_model, lambda step: {"poison"} if step >= entry["step"] else set(), tmp_path, options=options
    )
    assert_same(tmp_path / "student", expected)


def hurting(step):
    """A callback after which the update of a step has ruined the weights, the first time that it is made."""
    from transformers import TrainerCallback

    class Hurting(TrainerCallback):
        done = False

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == step and not self.done:
                self.done = True
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.data.normal_(std=30.0)

    return Hurting()


@pytest.mark.parametrize("step", [10, 11])
def test_weights_that_a_step_has_hurt_are_those_of_before_it_and_the_step_is_left_out(loud_model, tmp_path, step):
    """After step 10 there is a checkpoint, which holds the hurt weights; the one before it is gone back to."""
    guard = GUARDED.guard.model_copy(update={"spike": 3.0, "spike_nats": 0.5})
    options = GUARDED.model_copy(update={"epochs": 3, "guard": guard})
    result, said = run(tmp_path / "student", loud_model, options=options, callbacks=[hurting(step)])
    entries = list(read_jsonl(tmp_path / "student/quarantined.jsonl"))
    assert {entry["step"] for entry in entries} == {step}
    assert result.quarantined == len(entries) > 1
    assert f"step {step + 1}: loss spike: " in said[0]
    assert f" after step {step}; going back, and on without sessions " in said[0]
    assert said[1] == f"going on from step {step - 2 if step == 10 else step - 1}"
    out = {entry["id"] for entry in entries}
    seen = {row["id"] for row in read_jsonl(tmp_path / "student/example_losses.jsonl") if row["step"] >= step}
    assert not seen & out
    expected = without(
        loud_model, lambda at: out if at >= step else set(), tmp_path, sessions=SESSIONS, options=options
    )
    assert_same(tmp_path / "student", expected)


def test_a_base_that_is_broken_is_told_from_bad_sessions(healthy, tmp_path):
    model = spoilt(healthy, tmp_path / "model", broken)
    with pytest.raises(ModelError) as caught:
        run(tmp_path / "student", model, options=GUARDED)
    assert str(caught.value).startswith("training stopped at step 1 of ")
    assert "no session alone is to blame; lower train.learning_rate" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "student/checkpoints").glob("checkpoint-*"))


def test_training_stops_where_no_session_may_be_set_aside(nan_model, tmp_path):
    options = GUARDED.model_copy(update={"guard": GUARDED.guard.model_copy(update={"max_quarantined": 0})})
    with pytest.raises(ModelError, match=r"the loss is no number, and 0 of 0 sessions that may be set aside"):
        run(tmp_path / "student", nan_model, sessions=POISONED, options=options)


def test_a_gradient_that_is_no_number_is_blamed_on_the_session_it_comes_from(healthy, tmp_path):
    """The loss is fine, and the way back is not, where the next token is said to that session's own."""
    from contextlib import nullcontext

    from distill.train.spikes import Quarantine, Spikes

    trainer = built(healthy, sessions=POISONED, options=GUARDED)
    poison = trainer.ids.index("poison")
    (token,) = trainer.processing_class.encode(EVIL, add_special_tokens=False)
    model, seen = trainer.model.get_base_model().model, []
    model.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0] == token))

    def ruin(module, inputs, output):
        evil = seen[-1][..., None]
        output.register_hook(lambda gradient: torch.where(evil, math.nan, gradient))

    model.norm.register_forward_hook(ruin)
    told = []
    trainer.guard(
        Quarantine(tmp_path / "quarantined.jsonl", 8),
        Spikes(GUARDED.guard),
        tell=lambda step, entries, line: told.append((step, [entry.id for entry in entries], line)),
        saving=lambda step: nullcontext(),
    )
    trainer.training_step(trainer.model, {"rows": (0, poison, 2)})
    assert [(step, ids) for step, ids, _ in told] == [(1, ["poison"])]
    assert "the gradient is no number; done again without session poison (loss " in told[0][2]
    assert [one.row for one in trainer.taken] == [0, 2]


def test_the_losses_of_examples_add_up_to_the_step_and_are_those_of_each_alone(after_nan, healthy):
    from pathlib import Path

    from distill.models import loading

    rows = list(read_jsonl(after_nan[0] / "example_losses.jsonl"))
    for step, loss in enumerate(losses(after_nan[0]), start=1):
        mine = [row for row in rows if row["step"] == step]
        tokens = sum(row["tokens"] for row in mine)
        assert sum(row["loss"] * row["tokens"] for row in mine) / tokens == pytest.approx(loss, abs=1e-5)
    assert {row["id"] for row in rows} == {session.id for session in SESSIONS}
    model = loading.load_causal(Path(healthy), layers=[0, 2, 3], quantise=True)
    tokenizer = loading.load_tokenizer(Path(healthy))
    sessions = {session.id: session for session in SESSIONS}
    for row in (row for row in rows if row["step"] == 1):
        example = chat_template.encode(sessions[row["id"]].messages, "chatml", tokenizer)
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss
        assert row["loss"] == pytest.approx(alone.item(), abs=1e-4)
        assert row["tokens"] == example.trained


def test_sound_training_is_left_alone(after_nan, healthy, tmp_path):
    result, said = run(tmp_path / "student", healthy, options=GUARDED)
    assert (result.quarantined, said) == (0, [])
    assert not (tmp_path / "student/quarantined.jsonl").exists()
    assert len(losses(tmp_path / "student")) == result.steps
