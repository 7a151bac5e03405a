"""A step without a finite loss or gradient norm is skipped, and sessions without a finite loss are left out."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise

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


@pytest.fixture(scope="module")
def nan_model(healthy, tmp_path_factory):
    return spoilt(healthy, tmp_path_factory.mktemp("nan") / "model", no_number)


def events(folder):
    return [row for row in read_jsonl(folder / "train_log.jsonl") if row.get("event") == "skipped"]


@pytest.fixture(scope="module")
def after_nan(nan_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("after-nan") / "student"
    return folder, *run(folder, nan_model, sessions=POISONED, options=GUARDED)


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_session_whose_loss_is_not_finite_is_quarantined_by_name_and_its_step_skipped(after_nan):
    folder, result, lines = after_nan
    (entry,) = read_jsonl(folder / "quarantined.jsonl")
    assert (entry["id"], entry["reason"]) == ("poison", "the loss is not finite")
    step = entry["step"] - 1
    assert lines == [f"step {step} skipped: the loss is not finite; without session poison from now on"]
    assert [(row["step"], row["ids"], row["line"]) for row in events(folder)] == [(step, ["poison"], lines[0])]
    assert (result.quarantined, result.rows) == (1, 25)
    assert all(math.isfinite(loss) for loss in losses(folder))
    (skipped,) = (row for row in read_jsonl(folder / "train_log.jsonl") if row["step"] == step and "event" not in row)
    assert skipped["grad_norm"] == 0


def test_a_skipped_step_leaves_every_weight_as_it_was(nan_model, tmp_path):
    from transformers import TrainerCallback

    class Copies(TrainerCallback):
        def __init__(self):
            self.after = []

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.after.append([one.detach().clone() for one in model.parameters() if one.requires_grad])

    copies = Copies()
    run(tmp_path / "student", nan_model, sessions=POISONED, options=GUARDED, callbacks=[copies])
    (event,) = events(tmp_path / "student")
    moved = [
        any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        for before, after in pairwise(copies.after)
    ]
    assert [step for step, has_moved in enumerate(moved, start=2) if not has_moved] == [event["step"]]


@pytest.mark.parametrize("after", [0, 3], ids=["skips it again", "goes on from behind it"])
def test_an_interrupted_run_keeps_it_out_and_ends_the_same(after_nan, nan_model, tmp_path, after):
    from transformers import TrainerCallback

    (event,) = events(after_nan[0])

    class Stopped(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == event["step"] + after:
                raise KeyboardInterrupt

    folder = tmp_path / "student"
    with pytest.raises(KeyboardInterrupt):
        run(folder, nan_model, sessions=POISONED, options=GUARDED, callbacks=[Stopped()])
    result, _ = run(folder, nan_model, sessions=POISONED, options=GUARDED)
    assert result.quarantined == 1
    assert weights(folder) == weights(after_nan[0])
    assert len(list(read_jsonl(folder / "quarantined.jsonl"))) == 1
    assert [row["ids"] for row in events(folder)] == [["poison"]]


def test_a_base_that_is_broken_stops_the_run_after_five_steps(healthy, tmp_path):
    model = spoilt(healthy, tmp_path / "model", broken)
    with pytest.raises(ModelError) as caught:
        run(tmp_path / "student", model, options=GUARDED)
    assert str(caught.value).startswith("training stopped at step 5 of ")
    assert "steps [1, 2, 3, 4, 5] had no finite loss or gradient norm; lower train.learning_rate" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_bad_step_counts_once_however_often_it_is_resumed(nan_model, tmp_path):
    from transformers import TrainerCallback

    class Stopped(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    for _ in range(6):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "student", nan_model, sessions=[POISON], options=GUARDED, callbacks=[Stopped()])


def test_rows_quarantined_by_an_earlier_version_stay_out(after_nan, nan_model, tmp_path):
    """It wrote more about each, and redid the step that is skipped now."""
    folder = shutil.copytree(after_nan[0], tmp_path / "student")
    for checkpoint in folder.glob("checkpoints/checkpoint-*"):
        shutil.rmtree(checkpoint)
    row = {"id": "poison", "step": 1, "reason": "loss spike", "loss": 9.0, "median": 2.0, "limit": 3.0}
    (folder / "quarantined.jsonl").write_text(json.dumps(row) + "\n")
    result, lines = run(folder, nan_model, sessions=POISONED, options=GUARDED)
    assert (result.quarantined, lines) == (1, [])
    assert "poison" not in {row["id"] for row in read_jsonl(folder / "example_losses.jsonl")}


def test_a_step_whose_gradient_norm_is_not_finite_is_skipped(healthy, tmp_path):
    """The loss is fine, and its gradient is not."""
    trainer = built(healthy, sessions=POISONED, options=GUARDED)
    poison = trainer.ids.index("poison")
    (token,) = trainer.processing_class.encode(EVIL, add_special_tokens=False)
    model, seen = trainer.model.get_base_model().model, []
    model.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0] == token))

    def ruin(module, inputs, output):
        evil = seen[-1][..., None]
        output.register_hook(lambda gradient: torch.where(evil, math.nan, gradient))

    model.norm.register_forward_hook(ruin)
    skips = []
    trainer.guard(tmp_path / "quarantined.jsonl", [], [], skips.append)
    loss = trainer.training_step(trainer.model, {"rows": (0, poison, 2)})
    assert [(skip["step"], skip["reason"], skip["ids"]) for skip in skips] == [
        (1, "the gradient norm is not finite", [])
    ]
    assert all(one.grad is None for one in trainer.model.parameters())
    assert math.isfinite(float(loss))
    assert {one["id"] for one in trainer.example_losses} == {trainer.ids[0], "poison", trainer.ids[2]}
    assert not (tmp_path / "quarantined.jsonl").exists()


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
    result, lines = run(tmp_path / "student", healthy, options=GUARDED)
    assert (result.quarantined, lines) == (0, [])
    assert not (tmp_path / "student/quarantined.jsonl").exists()
    assert len(losses(tmp_path / "student")) == result.steps
