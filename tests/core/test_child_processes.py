"""Every process that we start imports nothing from the current folder, which may have come from elsewhere."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import distill
from distill.core import processes
from distill.core.embedded import fetch
from distill.curate.rows import sift
from distill.errors import ServerError
from distill.models.child_server import LocalServer
from tests.support.models.wheels import CONTENT, TINY
from tests.support.odd_rules import Where, row

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("ctypes", "signal", "json", "typer", "torch", "yaml", "multiprocessing", "runpy", "os", "sitecustomize")
NAMES = (*NAMES, "usercustomize", "pip", "distill", "transformers", "numpy", "concurrent", "logging", "safetensors")
TRAP = "import pathlib\n(pathlib.Path({folder!r}) / {name!r}).touch()\n"


@pytest.fixture
def caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Makes a folder of modules and packages that leave a mark when they are imported the current one."""
    marks, traps = tmp_path / "marks", tmp_path / "shared"
    marks.mkdir()
    traps.mkdir()
    for name in NAMES:
        code = TRAP.format(folder=str(marks), name=name)
        (traps / f"{name}.py").write_text(code)
    for name in ("pip", "multiprocessing", "torch"):
        (traps / name).mkdir()
        (traps / name / "__init__.py").write_text(TRAP.format(folder=str(marks), name=name))
    monkeypatch.chdir(traps)
    return lambda: sorted(mark.name for mark in marks.iterdir())


def test_a_folder_of_traps_catches_a_plain_child(caught):
    subprocess.run([sys.executable, "-c", "import typer"], check=False, env={**os.environ, "PYTHONSAFEPATH": ""})
    assert "typer" in caught()


@pytest.mark.model
def test_a_model_server_imports_nothing_from_the_current_folder(caught, tiny, tmp_path):
    with LocalServer(tiny, log=tmp_path / "server.log", say=lambda line: None) as server:
        assert server.base_url.startswith("http://127.0.0.1:")
    assert caught() == []


def test_another_server_inherits_that_python_leaves_the_current_folder_out(caught, tmp_path, monkeypatch):
    script = tmp_path / "bin" / "vllm"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\n{sys.executable} -c 'import typer; print(typer.Typer)'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    with pytest.raises(ServerError, match="exit code 0"):
        LocalServer("org/model", log=tmp_path / "server.log", server="vllm", say=lambda line: None).start()
    assert "class" in (tmp_path / "server.log").read_text()
    assert caught() == []


@pytest.mark.model
def test_a_rehearsed_training_imports_nothing_from_the_current_folder(caught, tiny):
    from distill.models.chat_template import Example
    from distill.train.dry_run import measured_pass
    from distill.train.options import TrainOptions

    assert measured_pass(Path(tiny), None, [Example([1, 2, 3], [-100, 2, 3])], TrainOptions(), 1).tokens == 3
    assert caught() == []


def test_pip_imports_nothing_from_the_current_folder(caught, index):
    assert fetch(TINY).read_bytes() == CONTENT
    assert caught() == []


def test_a_pool_imports_nothing_from_the_current_folder(caught):
    rows = [row(number) for number in range(1000)]
    sift(rows, [("where", Where())], processes=2)
    assert os.getpid() not in {one.verdicts[0].value for one in rows}
    assert caught() == []


def test_a_pool_finds_parts_in_a_folder_that_the_user_has_put_on_the_path(tmp_path):
    (tmp_path / "mine.py").write_text("from tests.support.odd_rules import Where\nclass Mine(Where):\n    pass\n")
    code = (
        "import os, mine\nfrom distill.curate.rows import sift\nfrom tests.support.odd_rules import row\n"
        "rows = [row(number) for number in range(1000)]\n"
        "sift(rows, [('mine', mine.Mine())], processes=2)\n"
        "print(os.getpid() in {one.verdicts[0].value for one in rows})\n"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([".", str(ROOT)])}
    command = processes.python("-c", code)
    ended = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("False\n", "")


def test_what_the_user_had_set_is_back_when_a_block_ends(monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with processes.current_folder_off_path():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert "PYTHONSAFEPATH" not in os.environ


def test_python_and_its_pools_are_started_at_one_place_alone():
    """The pager, which a user names, is no Python; `local.py` and `embedded.py` name the type of what they get."""
    modules, starts = ("subprocess", "multiprocessing", "os"), ("run", "call", "check_output", "get_context", "system")
    starting = {f"{module}.{name}" for module in modules for name in starts} | {"sys.executable", "ProcessPoolExecutor"}
    found = set()
    for file in Path(distill.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        if starting & {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute | ast.Name)}:
            found.add(file.name)
        if any(isinstance(node, ast.Call) and ast.unparse(node.func) == "subprocess.Popen" for node in nodes):
            found.add(file.name)
    assert found - {"console.py"} == {"processes.py"}
