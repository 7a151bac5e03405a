"""Training: real QLoRA in NF4 on a tiny random Llama with the real tokenizer."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from distill.core.extras import install
from distill.core.jsonl import read_jsonl, write_rows
from distill.errors import DistillError
from distill.train import stage
from distill.train.options import TrainOptions
from distill.types import Message, Session
from tests.support import training
from tests.support.training import OPTIONS, SESSIONS, run

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model


class Watcher:
    """A progress that keeps what it is told."""

    def __init__(self):
        self.updates = []

    def update(self, done, total=None, note=""):
        self.updates.append((done, total, note))


def weights(folder) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A student trained without interruption, what the run returned, and what it reported."""
    folder = tmp_path_factory.mktemp("run") / "student"
    watcher = Watcher()
    result, lines = run(folder, tiny, progress=watcher)
    return folder, result, lines, watcher


def loss_of(model, tokenizer) -> float:
    from distill.models import chat_template

    losses = []
    for session in SESSIONS:
        example = chat_template.encode(session.messages, "chatml", tokenizer)
        with torch.no_grad():
            out = model(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels]))
        losses.append(out.loss.item())
    return sum(losses) / len(losses)


def test_the_student_has_learnt_and_its_base_has_not(trained, tiny):
    from distill.models.loading import load_student

    folder, result, lines, _ = trained
    base, student = (loss_of(*load_student(folder, adapter=adapter)) for adapter in (False, True))
    assert student < base - 0.5
    assert (result.rows, result.too_long, result.empty) == (24, 0, 0)
    assert result.trained_tokens < result.tokens
    assert lines == []


def test_a_student_folder_tells_its_base(trained, tiny):
    from distill.core.weights import fingerprint

    told = json.loads((trained[0] / "base.json").read_text())
    assert told == {
        "model": tiny,
        "fingerprint": fingerprint(tiny),
        "layers": [0, 2, 3],
        "template": "chatml",
        "quantised": True,
        "method": "qlora",
    }
    names = {path.name for path in trained[0].iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "train_log.jsonl"} <= names
    assert "README.md" not in names


def test_every_file_has_the_usual_permissions(trained):
    before = os.umask(0)
    os.umask(before)
    files = [path for path in trained[0].rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~before}


def test_every_linear_layer_has_an_adapter_in_float32(trained):
    adapter = weights(trained[0])
    kinds = {name.split(".")[-3] for name in adapter}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(adapter) == 3 * 7 * 2
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}


def test_the_saved_tokenizer_asks_in_the_trained_ids_and_pads_with_another_token_than_the_end(trained):
    from distill.models import chat_template
    from distill.models.loading import load_tokenizer

    tokenizer = load_tokenizer(trained[0])
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Number 3?"}], add_generation_prompt=True, return_dict=False
    )
    assert asked == chat_template.prompt_ids([Message("user", "Number 3?")], "chatml", tokenizer)
    assert tokenizer.pad_token != tokenizer.eos_token


def test_the_log_and_the_progress_have_every_step_once(trained):
    folder, result, _, watcher = trained
    rows = list(read_jsonl(folder / "train_log.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, result.steps + 1))
    assert set(rows[0]) == {"step", "steps", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "seconds"}
    assert rows[-1]["tokens"] == 2 * result.tokens
    told = dict.fromkeys((done, total) for done, total, _ in watcher.updates)  # a checkpoint tells its step again
    assert list(told) == [(i, result.steps) for i in range(result.steps + 1)]
    assert "tokens/s" in watcher.updates[-1][2]


@pytest.fixture(scope="module")
def built(tiny):
    """TRL's trainer as we build it, without dropout, with adapters that do something; its examples; them packed."""
    trainer = training.built(tiny, sessions=SESSIONS[:8], options=TrainOptions())
    return trainer, trainer.examples, trainer.batch(range(8))


def loss_and_gradients(trainer, inputs, *, ours=True, items=None):
    from trl import SFTTrainer

    trainer.model.zero_grad()
    compute = trainer.compute_loss if ours else SFTTrainer.compute_loss.__get__(trainer)
    loss = compute(trainer.model, dict(inputs), num_items_in_batch=items)
    loss.backward()
    gradients = [p.grad.flatten().clone() for p in trainer.model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


def test_packed_rows_do_not_see_each_other(built):
    trainer, examples, packed = built
    assert packed["input_ids"].shape == (1, sum(len(example.input_ids) for example in examples))
    items = sum(example.trained for example in examples)
    together, gradient = loss_and_gradients(trainer, packed, items=items)
    alone, summed = 0.0, torch.zeros_like(gradient)
    for example in examples:
        row = trainer.data_collator([{"input_ids": example.input_ids, "labels": example.labels}])
        loss, one = loss_and_gradients(trainer, row, items=items)
        alone, summed = alone + loss, summed + one
    assert together == pytest.approx(alone, abs=1e-5)
    assert torch.allclose(gradient, summed, atol=1e-5)


def test_the_loss_and_its_gradients_are_those_of_trl(built):
    trainer, _, packed = built
    loss, gradient = loss_and_gradients(trainer, packed, items=37)
    theirs, their_gradient = loss_and_gradients(trainer, packed, ours=False, items=37)
    assert loss == pytest.approx(theirs, abs=1e-5)
    assert torch.allclose(gradient, their_gradient, atol=1e-5)


def test_rows_that_are_too_long_are_left_out_and_counted(tiny, tmp_path):
    long = Session("long", (Message("user", "Speak."), Message("assistant", "word " * 200)))
    options = OPTIONS.model_copy(update={"max_length": 100, "epochs": 0.1})
    result, lines = run(tmp_path / "student", tiny, sessions=[*SESSIONS[:4], long], options=options)
    assert (result.rows, result.too_long) == (4, 1)
    assert lines == ["1 of 5 sessions are longer than train.max_length=100 and left out"]


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([Session("a", (Message("user", "x " * 600), Message("assistant", "y")))], "1 are longer than train.max_l"),
        ([Session("a", (Message("user", "x"), Message("assistant", "")), {"truncated": True})], "1 have no answer"),
        ([Session("a", (Message("tool", "x"), Message("assistant", "y")))], "session a: template chatml has no place"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said_in_one_line(tiny, tmp_path, sessions, expected):
    with pytest.raises(DistillError) as caught:
        run(tmp_path / "student", tiny, sessions=sessions)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lora_trains_without_quantisation(tiny, tmp_path):
    options = OPTIONS.model_copy(update={"method": "lora"})
    result, _ = run(tmp_path / "student", tiny, options=options, layers=None)
    told = json.loads((tmp_path / "student/base.json").read_text())
    assert (told["quantised"], told["layers"]) == (False, None)
    first = next(read_jsonl(tmp_path / "student/train_log.jsonl"))
    assert result.final_loss < first["loss"] - 0.5


def test_the_stage_trains_kept_rows_and_prints_nothing_foreign(tiny, tmp_path, capfd):
    write_rows(tmp_path / "kept.jsonl", SESSIONS[:6])
    options = OPTIONS.model_copy(update={"epochs": 1})
    counts = stage.train(tmp_path, stage.TrainSettings(tiny, "vicuna", options, seed=3, layers=2))
    assert (tmp_path / "student.next/base.json").is_file()
    assert (counts["rows"], counts["too_long"]) == (6, 0)
    assert json.dumps(counts)
    printed = capfd.readouterr()
    assert printed.out == ""
    told = [line for line in printed.err.splitlines() if not line.startswith("train: ")]
    assert told.pop() == counts["checks"]["line"]
    assert told[0] == "session s0: 9 of 48 tokens are trained (in ⟦ ⟧)"
    assert [line[-52:] for line in told[1:]] == ["USER: Number 0? ASSISTANT:⟦ 0 is red, I say.<|im_end|>⟧"[-52:]]
    (shown,) = json.loads((tmp_path / "student.next/masks.json").read_text())["sessions"]
    assert (shown["id"], sum(shown["trained"])) == ("s0", 9)


def test_no_rows_is_one_line(tmp_path):
    with pytest.raises(DistillError, match="holds no sessions to train on; run curate first"):
        stage.train(tmp_path, stage.TrainSettings("x", "chatml", OPTIONS, seed=1))


MISSING = """
import sys
sys.modules["datasets"] = None
from pathlib import Path
from distill import errors
from distill.train import stage
assert "torch" not in sys.modules
try:
    stage.train(Path(sys.argv[1]), stage.TrainSettings("x", "chatml", stage.TrainOptions(), seed=1))
except errors.MissingPackage as error:
    print(error)
"""


def test_a_missing_package_is_one_line_and_options_need_no_torch(tmp_path):
    write_rows(tmp_path / "kept.jsonl", SESSIONS[:1])
    finished = subprocess.run(
        [sys.executable, "-c", MISSING, str(tmp_path)], capture_output=True, text=True, check=True
    )
    expected = f"training needs datasets, which is not installed; type: {install('train')}"
    assert finished.stdout.strip() == expected
