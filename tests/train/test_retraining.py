"""A retraining that is interrupted, killed or finished, by the commands: which student there is, and what uses it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import yaml

from distill.cli.main import _code
from distill.core import student_folder
from distill.run.record import read_record, run_record
from tests.train.test_fresh import kill_after_a_checkpoint, write_curated

pytest.importorskip("torch")
pytestmark = pytest.mark.model


def digests(folder: Path) -> dict[str, str]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


@pytest.fixture(scope="module")
def trained_once(tiny, tmp_path_factory) -> Path:
    run = write_curated(tmp_path_factory.mktemp("trained"), tiny)
    assert _code(["train", str(run)]) == 0
    return run


@pytest.fixture
def trained(trained_once, tmp_path) -> Path:
    """A run with a finished student of four epochs."""
    return Path(shutil.copytree(trained_once, tmp_path / "run"))


LONGER = ["--set", "train.epochs=9"]


@pytest.fixture(scope="module")
def killed_once(tiny, tmp_path_factory) -> Path:
    run = write_curated(tmp_path_factory.mktemp("killed"), tiny)
    kill_after_a_checkpoint(run)
    return run


@pytest.fixture
def killed(killed_once, tmp_path) -> Path:
    """A run whose training was killed after its first checkpoint."""
    return Path(shutil.copytree(killed_once, tmp_path / "run"))


def interrupted(run: Path, *arguments: str) -> int:
    """Train, and press Ctrl-C once a step is logged; the exit code."""
    ended = threading.Event()

    def press() -> None:
        while not (run / student_folder.NEXT / "train_log.jsonl").is_file():
            if ended.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    try:
        return _code(["train", str(run), *arguments])
    finally:
        ended.set()
        finger.join()


@pytest.mark.parametrize("how", ["Ctrl-C", "kill -9", "--fresh, Ctrl-C"])
def test_a_training_that_is_cut_short_leaves_the_student_to_the_byte(trained, how, capsys, tmp_path):
    before = digests(trained / "student")
    if how == "kill -9":
        kill_after_a_checkpoint(trained, *LONGER)
    else:
        assert interrupted(trained, *(LONGER if how == "Ctrl-C" else ["--fresh"])) == 130
        assert run_record(trained).stages["train"].status == "partial"
    assert digests(trained / "student") == before

    capsys.readouterr()
    assert _code(["export", str(trained), "--to", "adapter", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err
    assert "a later training is unfinished" in lines
    assert ("train.epochs 4 → 9" in lines) == (how != "--fresh, Ctrl-C")
    assert "- epochs: 4.0\n" in (tmp_path / "out/README.md").read_text()

    assert _code(["train", str(trained), *(LONGER if how != "--fresh, Ctrl-C" else ["--set", "train.epochs=4"])]) == 0
    if how != "--fresh, Ctrl-C":
        assert "going on from step" in capsys.readouterr().err
        assert digests(trained / student_folder.PREVIOUS) == before
        assert json.loads((trained / "student/training.json").read_text())["recipe"]["train"]["epochs"] == 9
    else:
        assert digests(trained / "student") == before  # what the recipe asks for is there


def test_the_recipe_of_the_student_that_is_there_trains_nothing_again(trained, capsys):
    before = digests(trained / "student")
    interrupted(trained, *LONGER)
    assert read_record(trained)["stages"]["train"]["status"] == "partial"
    capsys.readouterr()
    assert _code(["train", str(trained), "--set", "train.epochs=4"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert digests(trained / "student") == before
    assert read_record(trained)["stages"]["train"]["status"] == "done"


def test_a_student_that_was_put_in_place_and_not_noted_in_run_json_is_not_trained_again(trained, capsys):
    before = digests(trained / "student")
    path = trained / "run.json"
    record = json.loads(path.read_text())
    record["stages"]["train"] |= {"status": "running", "outputs": {}, "counts": {}}
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert _code(["train", str(trained)]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert digests(trained / "student") == before
    assert read_record(trained)["stages"]["train"]["counts"]["steps"] == 24


@pytest.mark.parametrize("beside", ["beside a finished student", "alone"])
def test_checkpoints_of_an_older_version_resume(killed, beside, capsys):
    (killed / student_folder.NEXT).rename(killed / "student")
    if beside != "alone":
        (killed / "student/base.json").write_text("{}")
        (killed / "student/adapter_model.safetensors").write_bytes(b"old")
    capsys.readouterr()
    assert _code(["train", str(killed)]) == 0
    assert "going on from step" in capsys.readouterr().err
    assert (killed / "student/training.json").is_file()
    if beside != "alone":
        assert (killed / student_folder.PREVIOUS / "adapter_model.safetensors").read_bytes() == b"old"
        assert not (killed / student_folder.PREVIOUS / "checkpoints").exists()


def test_a_student_says_what_made_it(trained):
    made = json.loads((trained / "student/training.json").read_text())
    entry = made["stages"]["train"]
    assert made["recipe"] == yaml.safe_load((trained / "recipe.yaml").read_text())
    assert entry["inputs"]["kept.jsonl"] == hashlib.sha256((trained / "kept.jsonl").read_bytes()).hexdigest()
    assert [entry["counts"][name] for name in ("rows", "planned_steps", "steps")] == [24, 24, 24]
    assert {"torch", "transformers", "trl", "peft"} <= set(made["versions"])
    assert entry["outputs"] == read_record(trained)["stages"]["train"]["outputs"]


def test_clean_removes_the_student_before_and_nothing_else(trained, capsys):
    assert _code(["train", str(trained), "--fresh"]) == 0
    interrupted(trained, *LONGER)
    before = {name: told for name, told in digests(trained).items() if not name.startswith(student_folder.PREVIOUS)}
    assert (trained / student_folder.PREVIOUS).is_dir()
    capsys.readouterr()
    assert _code(["clean", str(trained)]) == 0
    assert f"{trained / student_folder.PREVIOUS} removed (" in capsys.readouterr().out
    assert not (trained / student_folder.PREVIOUS).exists()
    after = digests(trained)
    changing = ("run.json", "run.log", "journal.sqlite")
    assert {name: told for name, told in after.items() if not name.startswith(changing)} == {
        name: told for name, told in before.items() if not name.startswith(changing)
    }
    shutil.move(trained / "student", trained / student_folder.PREVIOUS)
    assert _code(["clean", str(trained)]) == 0
    assert (trained / student_folder.PREVIOUS).is_dir()


def test_too_little_room_is_said_before_the_first_step(tiny, tmp_path):
    from distill.errors import RunFolderError
    from tests.support import training
    from tests.train.test_checkpoints import full_disk

    with full_disk(tmp_path / "disk") as enlarge:
        (tmp_path / "disk/filler").write_bytes(b"0" * 12_000_000)
        with pytest.raises(RunFolderError, match=r"need about \d+ MB more in .*, and \d MB are free; free some space"):
            training.run(tmp_path / "disk/student", tiny)
        assert not (tmp_path / "disk/student/train_log.jsonl").exists()
        enlarge()
        training.run(tmp_path / "disk/student", tiny)
