"""What a recipe sends, reads and executes is said before a run does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.core import assets
from distill.engine.mock_server import MockServer
from distill.pipeline.disclosure import MOST_FILES, disclosures, folder_of
from distill.pipeline.parts import load_recipe
from distill.pipeline.starter import shipped

MODEL = {"model": "m", "terms": "ours", "sampling": {"max_tokens": 5}}


def said(folder: Path, **sections: Any) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "stranger", **sections}))
    return list(disclosures(load_recipe(path, importing=False), folder_of(path)))


def write_tasks(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("What is a lake?\nWhat is a hat?\nWhat is a kite?\n")
    return str(path)


def test_each_host_is_named_with_the_variables_that_are_sent_there(tmp_path):
    write_tasks(tmp_path / "tasks.txt")
    teacher = {**MODEL, "base_url": "https://user.example/v1?key=$GATE_KEY", "api_key_env": "AWS_SECRET_ACCESS_KEY"}
    judge = {**MODEL, "base_url": "https://judge.example/v1", "headers_env": {"X-Key": "JUDGE_KEY"}}
    assert said(tmp_path, teacher=teacher, judge=judge, collect={"tasks": "tasks.txt", "test": 0}) == [
        "sends prompts to https://user.example/v1 (teacher), with $AWS_SECRET_ACCESS_KEY, $GATE_KEY",
        "sends prompts to https://judge.example/v1 (judge), with $JUDGE_KEY",
    ]


def test_a_key_in_the_place_of_a_variable_is_not_shown(tmp_path):
    write_tasks(tmp_path / "tasks.txt")
    teacher = {**MODEL, "base_url": "https://user.example/v1", "api_key_env": "sk_live_0123456789abcdef"}
    (line,) = said(tmp_path, teacher=teacher, collect={"tasks": "tasks.txt", "test": 0})
    assert line == "sends prompts to https://user.example/v1 (teacher), with a variable"


@pytest.mark.parametrize("linked", [False, True])
def test_files_outside_the_folder_are_named_and_those_inside_are_not(tmp_path, linked):
    folder, outside = tmp_path / "shared", tmp_path / "private" / "diary.txt"
    write_tasks(outside)
    inside = write_tasks(folder / "tasks.txt")
    if linked:
        (folder / "link.txt").symlink_to(outside)
    sections = {"teacher": {**MODEL, "serve": "transformers", "model": "smollm2"}}
    rule = {"filter": "contamination", "files": [inside, "link.txt" if linked else str(outside)]}
    lines = said(folder, **sections, collect={"tasks": "tasks.txt", "test": 0}, curate=[rule])
    assert lines == [f"reads {outside}, outside the recipe's folder"]


def test_many_files_are_counted(tmp_path):
    folder = tmp_path / "shared"
    write_tasks(folder / "tasks.txt")
    files = [write_tasks(tmp_path / f"{n}.txt") for n in range(MOST_FILES + 2)]
    (line,) = said(
        folder,
        teacher={**MODEL, "serve": "transformers", "model": "smollm2"},
        collect={"tasks": "tasks.txt", "test": 0},
        curate=[{"filter": "contamination", "files": files}],
    )
    assert line.endswith(f"{files[MOST_FILES - 1]} and 2 more, outside the recipe's folder")


def test_code_and_downloads_are_named_and_nothing_is_imported(tmp_path):
    write_tasks(tmp_path / "tasks.txt")
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    assert said(
        tmp_path,
        teacher={**MODEL, "serve": "transformers", "model": "owner/model"},
        collect={"tasks": "tasks.txt", "test": 0, "strategy": "evil:Thing"},
        sources=[{"hub": "owner/data", "licence": "none"}],
        curate=[{"filter": "evil:Rule"}],
    ) == [
        "downloads owner/model, owner/data from the Hugging Face Hub",
        "executes evil:Thing, evil:Rule, if --allow-parts names the package",
    ]


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_reads_nothing_outside(name):
    path = assets.find(f"recipes/{name}.yaml")
    lines = list(disclosures(load_recipe(path), folder_of(path)))
    assert [line for line in lines if not line.startswith(("sends prompts to ", "downloads "))] == []


def test_check_and_the_first_lines_of_run_say_it(tmp_path):
    outside = write_tasks(tmp_path / "private" / "tasks.txt")
    (tmp_path / "shared").mkdir()
    with MockServer() as server:
        recipe = {
            "name": "stranger",
            "teacher": {**MODEL, "base_url": server.url},
            "collect": {"tasks": outside, "test": 0},
        }
        path = tmp_path / "shared" / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        expected = [
            f"sends prompts to {server.url} (teacher)",
            f"reads {outside}, outside the recipe's folder",
        ]
        command = [sys.executable, "-P", "-m", "distill"]
        checked = subprocess.run([*command, "check", path], capture_output=True, text=True, check=True)
        assert checked.stdout.splitlines()[1:3] == expected
        assert server.count == 0
        ran = subprocess.run(
            [*command, "run", path, "--run-dir", tmp_path / "run"], capture_output=True, text=True, check=True
        )
    assert ran.stderr.splitlines()[:3] == [*expected, "collect: started"]
