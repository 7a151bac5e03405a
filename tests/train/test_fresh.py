"""`distill train RUN --redo train` (or `--fresh`) starts over, from checkpoints as from a finished student."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import yaml

from distill.cli.main import _code
from distill.core.jsonl import write_rows
from tests.support import training
from tests.support.models.loaded_process import LoadedProcess

pytest.importorskip("torch")
pytestmark = pytest.mark.model

TRAIN = {"epochs": 4, "learning_rate": 5e-3, "lora": {"r": 8}, "batch_rows": 4, "save_steps": 2, "eval_rows": 0}
STEPS = 24


def write_curated(folder: Path, model: str) -> Path:
    """A run whose sessions are curated."""
    write_rows(folder / "rows.jsonl", training.SESSIONS)
    recipe = {
        "name": "anew",
        "seed": 1,
        "sources": [{"from": "distill", "path": "rows.jsonl", "licence": "ours"}],
        "curate": [{"filter": "empty"}],
        "student": {"model": model},
        "train": TRAIN,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = folder / "run"
    assert _code(["run", str(folder / "recipe.yaml"), "--run-dir", str(run), "--stages", "collect,curate"]) == 0
    return run


@pytest.fixture
def curated(tiny, tmp_path) -> Path:
    return write_curated(tmp_path, tiny)


def logged(run: Path) -> list[dict]:
    rows = map(json.loads, (run / "student/train_log.jsonl").read_text().splitlines())
    return [row for row in rows if "event" not in row]


def kill_after_a_checkpoint(run: Path, *arguments: str) -> None:
    """Begin to train, and kill the command once a checkpoint is whole."""
    with TemporaryFile() as said:
        training = LoadedProcess(["train", str(run), *arguments], stdout=said.fileno(), stderr=said.fileno())
        while not list(run.glob("student.next/checkpoints/*/distill.json")):
            assert training.poll() is None, said.seek(0) or said.read().decode()
            time.sleep(0.05)
        training.kill()
        assert training.wait(20) == -signal.SIGKILL


def test_checkpoints_of_other_options_are_refused_and_left_behind_when_asked_to_start_over(curated, capsys):
    kill_after_a_checkpoint(curated)
    assert not (curated / "student/base.json").exists()
    changed = ["train", str(curated), "--set", "train.learning_rate=1e-3"]
    capsys.readouterr()
    assert _code(changed) == 1
    lines = capsys.readouterr().err
    assert "train.learning_rate 0.005 → 0.001" in lines
    assert f"to start over, type: distill train {curated} --redo train" in lines

    assert _code([*changed, "--redo", "train"]) == 0
    assert "going on from step" not in capsys.readouterr().err
    steps = logged(curated)
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert max(row["learning_rate"] for row in steps) == pytest.approx(1e-3)
    assert (curated / "student/base.json").is_file()
    assert not (curated / "student/checkpoints").exists()


def test_a_finished_student_is_trained_again_only_when_asked_to_start_over(curated, capsys):
    assert _code(["train", str(curated)]) == 0
    first, log = (curated / "student/adapter_model.safetensors"), (curated / "student/train_log.jsonl")
    weights, written = first.read_bytes(), log.stat().st_mtime_ns
    capsys.readouterr()
    assert _code(["train", str(curated)]) == 0
    assert log.stat().st_mtime_ns == written
    assert _code(["train", str(curated), "--fresh"]) == 0
    assert log.stat().st_mtime_ns > written
    assert [row["step"] for row in logged(curated)] == list(range(1, STEPS + 1))
    assert first.read_bytes() == weights
