"""The run folder: one writer, one name, and a record that says what must run again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from distill.errors import RunFolderError, RunLocked
from distill.recipe import Recipe
from distill.run import record as record_module

RECIPE = Recipe(name="first")


def finished(folder, *, fingerprint="f1"):
    """A run with one finished stage that wrote tasks.jsonl."""
    with record_module.opened(folder, RECIPE) as opened:
        opened.describe([])
        record = opened.begin("expand", fingerprint, {})
        (folder / "tasks.jsonl").write_text("{}\n")
        record.status = "done"
        opened.save("expand", record, ["tasks.jsonl"])


def is_current(folder, fingerprint="f1"):
    with record_module.opened(folder, RECIPE) as opened:
        return opened.is_current("expand", fingerprint)


def test_a_finished_stage_is_current(tmp_path):
    finished(tmp_path)
    assert is_current(tmp_path)


def test_a_stage_with_other_inputs_is_not_current(tmp_path):
    finished(tmp_path)
    assert not is_current(tmp_path, "f2")


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{}\n{}\n")])
def test_a_stage_whose_output_was_touched_is_not_current(tmp_path, damage):
    finished(tmp_path)
    damage(tmp_path / "tasks.jsonl")
    assert not is_current(tmp_path)


def test_a_stage_that_was_cut_off_is_not_current(tmp_path):
    with record_module.opened(tmp_path, RECIPE) as opened:
        opened.describe([])
        opened.begin("expand", "f1", {})
    assert not is_current(tmp_path)


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    finished(tmp_path)
    with (
        pytest.raises(RunFolderError, match='holds the run "first", but this recipe is "second"'),
        record_module.opened(tmp_path, Recipe(name="second")),
    ):
        pass


def test_two_writers_are_refused(tmp_path):
    with (
        record_module.opened(tmp_path, RECIPE),
        pytest.raises(RunLocked, match="in use by another distill process"),
        record_module.opened(tmp_path, RECIPE),
    ):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from distill.recipe import Recipe; from distill.run import record\n"
        "with record.opened(Path(sys.argv[1]), Recipe(name='first')): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    with record_module.opened(tmp_path, RECIPE):
        pass


def test_a_damaged_record_says_what_to_do(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "fir')
    with pytest.raises(RunFolderError, match="delete it: the stages run again"), record_module.opened(tmp_path, RECIPE):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(RunFolderError, match="cannot make the run folder"),
        record_module.opened(tmp_path / "file" / "run", RECIPE),
    ):
        pass


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "MIN_FREE_BYTES", 10**18)
    with pytest.raises(RunFolderError, match="MB free on this disk"), record_module.opened(tmp_path, RECIPE):
        pass


def test_the_log_holds_what_was_said(tmp_path):
    from distill.core import console

    with record_module.opened(tmp_path, RECIPE):
        console.say("a line for the log")
    assert "a line for the log" in (tmp_path / "run.log").read_text()


def test_memory_and_time_of_a_stage_are_measured(tmp_path):
    record = record_module.StageRecord()
    with record_module.measured(record):
        held = bytearray(50_000_000)
    assert record.peak_memory_bytes >= 20_000_000
    assert record.seconds >= 0
    assert len(held) == 50_000_000


def test_the_record_is_json_with_every_field(tmp_path):
    finished(tmp_path)
    stage = json.loads((tmp_path / "run.json").read_text())["stages"]["expand"]
    assert stage["status"] == "done"
    assert set(stage["outputs"]) == {"tasks.jsonl"}
