"""What a recipe sends, reads and executes is said before a run does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from distill.engine.mock_server import MockServer

MODEL = {"model": "m", "terms": "ours", "sampling": {"max_tokens": 5}}


def write_tasks(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("What is a lake?\nWhat is a hat?\nWhat is a kite?\n")
    return str(path)


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
            f"sends to {server.url.split('/')[2]}",
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
