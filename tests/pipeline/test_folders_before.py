"""Run folders that an older version made: current as a whole, and stale by what their recipe says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.cli.main import _code
from distill.collect.stage import REVISION
from distill.curate import stage as curate
from distill.engine.mock_server import MockServer
from distill.engine.mock_server.stand_in import answer


@pytest.fixture
def server():
    with MockServer(answer=answer) as server:
        yield server


def recipe(folder: Path, url: str) -> Path:
    (folder / "prompts.txt").write_text("Name three rivers.\nWhy is the sky blue?\nPlan a party.\n")
    values = {
        "name": "before",
        "teacher": {"model": "stand-in", "base_url": url, "terms": "ours"},
        "collect": {"tasks": "prompts.txt", "test": 0},
        "curate": [{"filter": "empty"}, {"filter": "length", "min_words": 2}],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def as_before(run: Path) -> None:
    """What run.json was before it kept options: one hash a stage, and no format."""
    record = json.loads((run / "run.json").read_text())
    for entry in record["stages"].values():
        del entry["options"], entry["revision"]
        entry["fingerprint"] = "0f" * 32
    del record["format"], record["chosen"]
    (run / "run.json").write_text(json.dumps(record))


@pytest.fixture
def before(tmp_path, server) -> Path:
    assert _code(["run", str(recipe(tmp_path, server.url)), "--run-dir", str(tmp_path / "run")]) == 0
    as_before(tmp_path / "run")
    return tmp_path / "run"


def stages(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())["stages"]
    return found


def test_a_finished_run_is_current_as_a_whole_and_its_revision_is_told(before, server, capsys):
    asked = server.count
    capsys.readouterr()
    assert _code(["run", str(before)]) == 0
    said = capsys.readouterr().err
    assert "nothing to do, every stage is current" in said
    assert (
        f"curate: made by revision 0 of its code, now {curate.REVISION}; kept: `distill run {before} --redo curate`"
        in said
    )
    assert server.count == asked
    assert stages(before)["curate"]["options"]["curate.length.min_words"] == 2
    assert _code(["show", str(before)]) == 0
    assert "curate: made by revision 0" in capsys.readouterr().out


def test_another_option_makes_its_stage_stale_and_no_other(before, server, capsys):
    capsys.readouterr()
    assert _code(["run", str(before), "--set", "curate.length.min_words=3"]) == 0
    said = capsys.readouterr().err
    assert "curate runs again: curate.length.min_words 2 → 3" in said
    assert "collect runs again" not in said
    assert stages(before)["curate"]["revision"] == curate.REVISION
    assert stages(before)["collect"]["revision"] == 0


def test_the_recipe_of_a_folder_is_read_before_another_replaces_it(before, tmp_path, capsys):
    changed = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    changed["curate"] = [{"filter": "empty"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
    capsys.readouterr()
    assert _code(["run", str(tmp_path / "recipe.yaml"), "--run-dir", str(before)]) == 0
    said = capsys.readouterr().err
    assert "curate runs again: curate [empty, length] → [empty]" in said
    assert "collect runs again" not in said


def test_collect_done_again_is_answered_by_the_journal(before, server):
    asked = server.count
    rows = (before / "sessions.jsonl").read_bytes()
    assert _code(["collect", str(before), "--redo", "collect"]) == 0
    assert server.count == asked
    assert (before / "sessions.jsonl").read_bytes() == rows
    assert stages(before)["collect"]["revision"] == REVISION


@pytest.mark.parametrize(
    ("redo", "why"),
    [
        ("colect", 'unknown stage "colect"; did you mean "collect"?'),
        ("train", "redo: train is not a stage of this command"),
    ],
)
def test_a_stage_that_cannot_be_done_again_is_one_line(before, redo, why, capsys):
    assert _code(["run", str(before), "--redo", redo]) == 2
    assert why in capsys.readouterr().err


def test_keys_that_have_gone_are_dropped_from_a_folders_own_copy_with_a_line_each(before, capsys):
    path = before / "recipe.yaml"
    document = yaml.safe_load(path.read_text())
    document["teacher"]["gone"] = document["collect"]["gone"] = document["curate"][1]["gone"] = 1
    path.write_text(yaml.safe_dump(document))
    capsys.readouterr()
    assert _code(["run", str(before)]) == 0
    said = capsys.readouterr().err
    for key in ("teacher.gone", "collect.gone", "curate.length.gone"):
        assert said.count(f'"{key}" is no longer a key; left out') == 1
    assert "nothing to do" in said
    assert "gone: 1" not in path.read_text()


def test_keys_that_have_gone_are_errors_in_a_users_recipe(tmp_path, server, capsys):
    path = recipe(tmp_path, server.url)
    path.write_text(path.read_text().replace("collect:", "collect:\n  gone: 1"))
    assert _code(["run", str(path), "--run-dir", str(tmp_path / "run")]) == 2
    assert 'unknown key "collect.gone"' in capsys.readouterr().err


def test_a_folder_of_a_newer_format_is_refused_in_a_line(before, capsys):
    (before / "run.json").write_text(json.dumps({"format": 3, "version": "9.0"}))
    for command in ("run", "show", "report"):
        assert _code([command, str(before)]) == 1
        assert "has format 3, of a newer distill (9.0)" in capsys.readouterr().err


def test_a_folder_whose_recipe_had_a_secret_is_current_too(tmp_path, server, capsys):
    path = recipe(tmp_path, f"{server.url}?api_key=sk-a-secret-of-ours")
    assert _code(["run", str(path), "--run-dir", str(tmp_path / "run")]) == 0
    as_before(tmp_path / "run")
    capsys.readouterr()
    assert _code(["run", str(path), "--run-dir", str(tmp_path / "run")]) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_no_secret_stands_in_the_options(tmp_path, server, monkeypatch):
    path = recipe(tmp_path, f"{server.url}?api_key=sk-a-secret-of-ours")
    assert _code(["run", str(path), "--run-dir", str(tmp_path / "run")]) == 0
    assert "sk-a-secret" not in (tmp_path / "run/run.json").read_text()
