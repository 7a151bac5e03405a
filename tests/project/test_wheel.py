"""The wheel, installed alone in an empty environment without torch, used from another folder.

`make pythons` tries it on other versions of Python, those in `TEST_PYTHONS`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from shlex import quote
from shutil import which

import pytest

from distill.engine.mock_server import MockServer
from distill.engine.mock_server.stand_in import answer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


PROMPTS = (
    "Name three rivers.",
    "Why is the sky blue?",
    "Tell a short joke about tea.",
    "What rhymes with moon?",
    "Plan a birthday party.",
    "How do magnets work?",
    "Suggest a name for my cat.",
    "Who wrote Faust?",
    "Count from one to five.",
)


def interpreter(version: str | None) -> str:
    """A Python of that version on this machine; without one, that of the tests."""
    if version is None:
        return sys.executable
    for path in (which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(path)
    pytest.skip(f"python{version} is not on this machine")


@pytest.fixture(scope="module", params=os.environ.get("TEST_PYTHONS", "").split() or [None])
def installed(tmp_path_factory, request) -> Path:
    """The `distill` of an environment that holds the wheel and what it needs, and no torch."""
    own = interpreter(request.param)
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = folder.glob("distill-*.whl")
    subprocess.run([own, "-m", "venv", folder / "env"], check=True, capture_output=True)
    python = folder / "env/bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "env/bin/distill"


def run(command: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_it_finds_its_prompts_and_recipes(installed, tmp_path):
    finished = run(installed, "check", "quickstart", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "quickstart: valid" in finished.stdout
    [package] = installed.parent.parent.glob("lib/python3*/site-packages/distill")
    assert {"py.typed", "README.md"} <= {file.name for file in package.iterdir()}
    [shipped] = installed.parent.parent.glob("lib/python3*/site-packages/distill/_assets/recipes/accelerate")
    assert {file.name for file in shipped.iterdir()} == {"deepspeed_zero2.yaml", "fsdp.yaml", "multi_gpu.yaml"}
    assert {"recipe.schema.json", "KEYS.md"} <= {file.name for file in shipped.parent.iterdir()}


def test_training_without_torch_is_one_line(installed, tmp_path):
    finished = run(installed, "run", "quickstart", cwd=tmp_path)
    assert finished.returncode == 1
    assert finished.stderr.count("\n") == 1
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert finished.stderr.endswith(f"type: pip install {' '.join(map(quote, extra))}\n")


def test_expand_collect_and_curate_work_without_torch(installed, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    (tmp_path / "seeds.jsonl").write_text("".join(f"{json.dumps({'instruction': one})}\n" for one in PROMPTS))
    with MockServer(answer=answer) as server:
        recipe.write_text(
            f"name: light\nteacher: {{model: any, base_url: {server.url}, terms: ours, sampling: {{max_tokens: 16}}}}\n"
            "expand: {seeds: seeds.jsonl, tasks: 9}\ncollect: {test: 2, max_failed: 0}\ncurate: [{filter: empty}]\n"
        )
        for command in (["check"], ["run", "--stages", "expand,collect,curate"]):
            finished = run(installed, *command, "recipe.yaml", cwd=tmp_path)
            assert finished.returncode == 0, finished.stderr
    rows = [json.loads(line) for line in (tmp_path / "runs/light/kept.jsonl").read_text().splitlines()]
    assert len(rows) == 7
