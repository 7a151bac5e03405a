"""The run folder: one writer, one name, and a record that says what must run again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distill.errors import RecipeError, RunFolderError, RunLocked
from distill.pipeline.parts import load_recipe, recipe_file
from distill.recipe import Recipe
from distill.run import decisive
from distill.run import record as record_module
from distill.run.measuring import measured

RECIPE = Recipe(name="first")


def made(**options):
    return record_module.StageRecord(revision=2, options=options, inputs={"seeds.jsonl": "0f"})


def finished(folder):
    """A run with one finished stage that wrote tasks.jsonl."""
    with record_module.opened(folder, RECIPE) as opened:
        opened.describe([])
        record = made(tasks=3)
        opened.begin("expand", record)
        (folder / "tasks.jsonl").write_text("{}\n")
        record.status = "done"
        opened.save("expand", record, ["tasks.jsonl"])


def changes(folder, record=None):
    with record_module.opened(folder, RECIPE) as opened:
        return opened.changes("expand", record or made(tasks=3))


def test_a_finished_stage_is_current(tmp_path):
    finished(tmp_path)
    assert changes(tmp_path) == []


def test_a_stage_that_an_older_or_a_newer_revision_made_is_current(tmp_path):
    finished(tmp_path)
    assert changes(tmp_path, replace(made(tasks=3), revision=1)) == []
    assert changes(tmp_path, replace(made(tasks=3), revision=3)) == []


def test_a_stage_with_other_options_says_which(tmp_path):
    finished(tmp_path)
    assert changes(tmp_path, made(tasks=4, window=2)) == ["tasks 3 → 4", "window unset → 2"]


def test_a_value_left_out_is_shown_as_its_default(tmp_path):
    recipe = load_recipe("quickstart")
    options = {"curate.near_duplicate.rouge_l": 0.6, "train.lora.r": 8, "teacher.sampling.top_p": 0.5, "test.near": 0.5}
    options |= {"expand.forbidden": ["kill", "bomb"], "curate.gone.limit": 3}
    assert decisive.differences({}, options, decisive.defaults(recipe)) == [
        "curate.gone.limit unset → 3",
        "curate.near_duplicate.rouge_l 0.7 → 0.6",
        "expand.forbidden unset → [kill, bomb]",
        "teacher.sampling.top_p unset → 0.5",
        "test.near 0.7 → 0.5",
        "train.lora.r 16 → 8",
    ]


def test_a_stage_with_other_inputs_says_which(tmp_path):
    finished(tmp_path)
    assert changes(tmp_path, replace(made(tasks=3), inputs={})) == ["seeds.jsonl has changed"]


def test_a_default_that_has_changed_since_is_the_old_one_in_an_old_record(tmp_path, monkeypatch):
    finished(tmp_path)
    monkeypatch.setattr(decisive, "OLD_DEFAULTS", {"window": (3, 4, 8)})
    new = replace(made(tasks=3), revision=3)
    assert changes(tmp_path, new) == ["window 4 → 8"]
    assert changes(tmp_path, replace(new, options={"tasks": 3, "window": 4})) == []


def test_a_bare_name_is_answered_by_the_file_or_the_run_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "runs" / "mine")
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(RecipeError, match=r'did you mean "mine\.yaml"\?'):
        recipe_file(Path("mine"))
    (tmp_path / "mine.yaml").unlink()
    with pytest.raises(RecipeError, match='did you mean "runs/mine"'):
        recipe_file(Path("mine"))
    with pytest.raises(RecipeError, match=r"rows\.csv is data, no recipe; name it in one under `sources`"):
        recipe_file(Path("rows.csv"))
    with pytest.raises(RunFolderError, match='did you mean "runs/mine"'):
        record_module.read_record(Path("mine"))
    with pytest.raises(RunFolderError, match="name one of the runs in it, such as runs/mine"):
        record_module.read_record(Path("runs"))


def test_a_record_of_a_newer_format_is_refused_in_a_line(tmp_path):
    finished(tmp_path)
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3, "version": "9.0"}))
    with pytest.raises(RunFolderError, match=r"has format 3, of a newer distill \(9\.0\); this one .* up to 2"):
        changes(tmp_path)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{}\n{}\n")])
def test_a_stage_whose_output_was_touched_is_not_current(tmp_path, damage):
    finished(tmp_path)
    damage(tmp_path / "tasks.jsonl")
    assert changes(tmp_path) == ["tasks.jsonl is not as it was left"]


def test_a_stage_that_was_cut_off_is_not_current(tmp_path):
    with record_module.opened(tmp_path, RECIPE) as opened:
        opened.describe([])
        opened.begin("expand", made(tasks=3))
    assert changes(tmp_path) is None


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    finished(tmp_path)
    with (
        pytest.raises(RunFolderError, match=r'holds the run "first" of another recipe; this recipe \("second"\)'),
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
    with measured(record):
        held = bytearray(50_000_000)
    assert record.peak_memory_bytes >= 20_000_000
    assert record.seconds >= 0
    assert len(held) == 50_000_000


def test_the_record_is_json_with_every_field(tmp_path):
    finished(tmp_path)
    stage = json.loads((tmp_path / "run.json").read_text())["stages"]["expand"]
    assert stage["status"] == "done"
    assert set(stage["outputs"]) == {"tasks.jsonl"}


def test_what_a_killed_process_was_writing_is_removed_when_the_run_goes_on(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".run.json.a1b2c3d4", "kept.jsonl"):
        (tmp_path / "run" / name).write_text("{}")
    with record_module.opened(tmp_path / "run", RECIPE):
        assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "kept.jsonl"}
