"""A student stays whole and in use until the next one is finished, and every page tells of the one that is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distill.cli import show
from distill.compare.diff import read
from distill.core.student_folder import NEXT, PREVIOUS, current
from distill.errors import RunFolderError
from distill.report.stage import shape
from distill.run import model_card, remarks, students
from distill.run.record import read_record
from distill.run.remarks import student_remark
from tests.support.run_folder import RECIPE, change, write_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EVENTS = ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open")


def files(folder: Path) -> dict[str, bytes]:
    """But those that a killed write has left, which `distill clean` removes."""
    there = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in there.items() if not file.name.startswith(".")}


def train_next(run: Path, *, steps: int = 4) -> Path:
    """What a training leaves in student.next when it has ended."""
    new = run / NEXT
    (new / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (new / "checkpoints" / "checkpoint-4" / "optimizer.pt").write_bytes(b"0" * 100)
    (new / "base.json").write_text((run / "student" / "base.json").read_text())
    (new / "train_log.jsonl").write_text("".join(f'{{"step": {step + 1}, "loss": 1.0}}\n' for step in range(steps)))
    return new


def told(run: Path, **changes) -> dict:
    """What made the student in student.next."""
    entry = {**read_record(run)["stages"]["train"], "started": "2026-03-09T09:00:00+00:00", **changes}
    return students.account(run, read_record(run), {**entry, "outputs": {"student": students.sha256_of_next(run)}})


def change_training(run: Path, **changes) -> None:
    """Of the entry in run.json."""

    def changed(record: dict) -> dict:
        record["stages"]["train"] |= changes
        return record

    change(run / "run.json", changed)


def retrain(run: Path, *, steps: int = 4, **changes) -> None:
    """A whole training, its entry in run.json included."""
    train_next(run, steps=steps)
    made = told(run, **changes)
    students.finish(run, made)
    change_training(run, **made["stages"]["train"])


def move_on(run: Path, recipe: str) -> None:
    """Another recipe for the run, as `Run.describe` takes it."""
    if (own := students.set_aside(run, read_record(run))) is not None:
        change(run / "run.json", lambda record: {**record, "student": own})
    (run / "recipe.yaml").write_text(recipe)


def begin(run: Path, *, epochs: int) -> None:
    """A training of another recipe that was cut short."""
    move_on(run, RECIPE.replace("epochs: 2", f"epochs: {epochs}"))
    change_training(run, status="failed", started="2026-03-10T09:00:00+00:00", counts={}, outputs={})
    train_next(run)


# The replacement


STOPPED = """
import json, os, signal, sys
from pathlib import Path
from distill.run import students

run, number, told = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.stdin.read())

def watch(event, args):
    global number
    if event in sys.argv[3].split(","):
        number -= 1
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
students.finish(run, told)
"""


def stopped(run: Path, made: dict, number: int) -> bool:
    """Put a student in its place in a process that is killed before the so manyth change of a file; was there one?"""
    command = [sys.executable, "-c", STOPPED, str(run), str(number), ",".join(EVENTS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, input=json.dumps(made), env=environment, text=True, check=False)
    assert finished.returncode in (0, -signal.SIGKILL)
    return finished.returncode != 0


def test_a_kill_at_any_point_of_the_replacement_leaves_a_whole_student_and_is_made_good(tmp_path):
    origin = write_run(tmp_path / "origin", prompts=2)
    (origin / PREVIOUS).mkdir()
    (origin / PREVIOUS / "base.json").write_text("{}")
    old = files(origin / "student")
    train_next(origin)
    made = told(origin)
    new = {name: data for name, data in files(origin / NEXT).items() if "checkpoints" not in name}
    seen = set()
    for number in range(1, 100):
        run = shutil.copytree(origin, tmp_path / f"run-{number}")
        killed = stopped(run, made, number)
        there = files(current(run))
        there.pop("training.json", None)
        assert {name: data for name, data in there.items() if "checkpoints" not in name} in (old, new)
        seen.add((current(run).name, (run / PREVIOUS).exists(), (run / NEXT).exists()))
        students.settle(run)
        if (run / NEXT).exists():  # killed before its mark was written: the training goes on
            assert (files(run / "student"), killed) == (old, True)
            students.finish(run, made)
        assert files(run / "student").keys() == {*new, "training.json"}
        assert files(run / PREVIOUS) == old
        assert not (run / NEXT).exists()
        if not killed:
            break
    assert not killed
    between = ("student.next", True, True)  # its name, and whether there are a previous and a next one
    assert seen >= {("student", True, True), ("student", False, True), between, ("student", True, False)}


def test_a_first_student_replaces_none(tmp_path):
    run = write_run(tmp_path / "run", prompts=2)
    train_next(run)
    made = told(run)
    shutil.rmtree(run / "student")
    students.finish(run, made)
    assert students.training(run, {}) == made
    assert sorted(path.name for path in run.glob("student*")) == ["student"]


# Trainings of older versions


def with_checkpoints(run: Path) -> Path:
    (run / "student/checkpoints/checkpoint-2").mkdir(parents=True)
    (run / "student/checkpoints/identity.json").write_text("{}")
    (run / "student/masks.json").write_text("{}")
    return run


def test_a_training_begun_beside_a_finished_student_moves_out_and_leaves_that_alone(tmp_path):
    run = with_checkpoints(write_run(tmp_path / "run", prompts=2))
    (run / "student/adapter_model.safetensors").write_bytes(b"weights")
    students.settle(run)
    assert set(files(run / "student")) == {"base.json", "adapter_model.safetensors"}
    assert set(files(run / NEXT)) == {"train_log.jsonl", "masks.json", "checkpoints/identity.json"}
    assert (run / NEXT / "checkpoints/checkpoint-2").is_dir()


def test_a_first_training_that_was_begun_moves_as_a_whole(tmp_path):
    run = with_checkpoints(write_run(tmp_path / "run", prompts=2))
    (run / "student/base.json").unlink()
    before = files(run / "student")
    students.settle(run)
    assert files(run / NEXT) == before
    assert not (run / "student").exists()


def test_a_finished_student_of_an_older_version_is_left_as_it_is(tmp_path):
    run = write_run(tmp_path / "run", prompts=2)
    before = files(run)
    students.settle(run)
    assert files(run) == before
    assert students.training(run, read_record(run))["recipe"]["train"]["epochs"] == 2
    assert student_remark(run) is None


# Remarks on the current student


@pytest.fixture(params=["trained by this version", "trained by an older one"])
def run(request, tmp_path) -> Path:
    folder = write_run(tmp_path / "run", prompts=4)
    if request.param == "trained by this version":
        retrain(folder, started="2026-03-02T09:00:00+00:00")
        shutil.rmtree(folder / PREVIOUS)
        digest = students.sha256(folder, "student")
        change(folder / "run.json", lambda record: compared_with(record, digest))
    return folder


def compared_with(record: dict, digest: str | None) -> dict:
    compare = {**record["stages"]["compare"], "inputs": {"student": digest}}
    return {**record, "stages": {**record["stages"], "compare": compare}}


def reported(record: dict) -> dict:
    """As an older version has noted the report: without the student among what it is made from."""
    entry = {**record["stages"]["compare"], "counts": {}, "inputs": {}, "outputs": {}}
    return {**record, "stages": {**record["stages"], "report": entry}}


def test_after_an_unfinished_training_all_speak_of_the_student_that_is_there(run):
    before = files(run / "student")
    begin(run, epochs=9)
    assert files(run / "student") == before
    line = student_remark(run)
    assert line == (
        "the student is that of 2026-03-02T09:00:00+00:00; the recipe has changed (train.epochs 2 → 9), "
        "and a later training is unfinished"
    )
    card = model_card.card(run)
    assert "- epochs: 2\n" in card
    assert "epochs: 9" not in card
    assert "| optimizer steps | 72 |" in card
    assert "66%" in card
    shown = show.status_lines(run)
    assert line in shown
    assert [row.split()[:2] for row in shown if row.startswith(("train ", "compare "))] == [
        ["train", "failed"], ["compare", "done"]
    ]  # fmt: skip
    page = shape(run)
    assert line in page["warnings"]
    assert ("epochs: 2" in page["recipe"], "epochs: 9" in page["recipe"]) == (True, False)
    assert [bar.rows for bar in page["funnel"] if bar.label == "trained on"] == [103]


def test_a_comparison_of_other_rows_has_no_headline(run):
    change(run / "run.json", reported)
    assert "is stale" not in "".join(remarks.headline(run))

    def older(record):
        record["stages"]["compare"]["inputs"]["test.jsonl"] = "0" * 64
        return record

    change(run / "run.json", older)
    assert remarks.headline(run) == [
        f"the last finished comparison is stale: test.jsonl has changed since; type: distill compare {run}"
    ]


def test_after_a_finished_training_the_comparison_is_stale_everywhere(run):
    change(run / "run.json", reported)
    retrain(run, steps=6)
    assert student_remark(run) is None
    shown = "\n".join(show.status_lines(run))
    assert "compare  stale" in shown
    assert "report   stale" in shown
    assert "the last finished comparison is not of the current student" in shown
    headline = json.loads((run / "scores.json").read_text())["headline"]
    assert headline not in shown
    page = shape(run)
    assert page["headline"] == "The student has not been compared with its teacher yet."
    assert "compare is stale: student has changed since" in page["warnings"]
    assert "Not compared with its base and its teacher yet." in model_card.card(run)
    with pytest.raises(RunFolderError, match="was compared before its student was trained"):
        read(run)


def test_a_comparison_that_was_cut_short_leaves_no_old_score_on_the_new_students_card(run):
    retrain(run, steps=6)
    change(run / "run.json", lambda record: compared_with(record, students.sha256(run, "student")))
    assert "66%" in model_card.card(run)

    def cut(record: dict) -> dict:
        record["stages"]["compare"]["status"] = "failed"
        return record

    change(run / "run.json", cut)
    assert "66%" not in model_card.card(run)
    assert json.loads((run / "scores.json").read_text())["headline"] not in show.status_lines(run)


def test_a_recipe_and_rows_that_have_moved_on_make_the_training_stale(run):
    move_on(run, RECIPE.replace("epochs: 2", "epochs: 3"))
    assert any(row.startswith("train    stale") and "train.epochs 2 → 3" in row for row in show.status_lines(run))
    move_on(run, RECIPE.replace("epochs: 2", "epochs: 2, save_steps: 5"))
    assert any(row.startswith("train    done") for row in show.status_lines(run))


def test_of_a_student_whose_training_is_not_known_no_figure_is_told(tmp_path):
    run = write_run(tmp_path / "run", prompts=4)
    change_training(run, status="failed", counts={"rows": 7}, outputs={})
    assert "not known" in (student_remark(run) or "")
    card = model_card.card(run)
    assert "Teacher: not known" in card
    assert ("epochs" in card, "| conversations | — |" in card, "103" in card) == (False, True, False)


def test_what_made_a_student_is_told_only_of_these_very_files(run):
    assert students.training(run, read_record(run)) is not None
    (run / "student/train_log.jsonl").write_text('{"step": 1}\n')
    assert students.training(run, read_record(run)) is None
