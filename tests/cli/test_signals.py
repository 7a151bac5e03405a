"""Ctrl-C and SIGTERM at chosen moments of real commands: one line, nothing bought after, and the run goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from distill.engine.mock_server import MockServer, question

pytestmark = pytest.mark.slow

CHILD = """
import os, sys, time
event, place, number, swallowed = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "swallowed"
came = []
def hook(name, arguments):
    if name == event and place in str(arguments[1 if name == "os.rename" else 0]) and not came:
        came.append(True)
        try:
            os.kill(os.getpid(), number)
            time.sleep(0.1)
        except KeyboardInterrupt:
            if not swallowed:
                raise
sys.addaudithook(hook)
from distill.cli.main import main
sys.argv = ["distill", *sys.argv[5:]]
main()
"""
"""The command line, with a signal to itself at the first audit event of that name about that place."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
FILES = ("sessions.jsonl", "kept.jsonl", "dropped.jsonl", "test.jsonl", "answers.jsonl", "scores.json")


def answer(body: dict) -> str:
    return f"About {question(body)[8:]} there are many things to say."


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    with MockServer(answer=answer) as server:
        yield server


@pytest.fixture(scope="module")
def recipe(server: MockServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    names = ("rivers", "kites", "soups", "clocks", "owls", "songs", "hats", "tides")
    (folder / "tasks.jsonl").write_text(
        "".join(json.dumps({"id": f"t{n}", "instruction": f"What of {name}?"}) + "\n" for n, name in enumerate(names))
    )
    model = {"base_url": server.url, "terms": "ours", "sampling": {"max_tokens": 20}}
    document = {
        "name": "signals",
        "teacher": {"model": "m", **model},
        "collect": {"tasks": "tasks.jsonl", "test": 2},
        "curate": [{"filter": "empty"}, {"filter": "near_duplicate"}],
        "compare": {"metrics": ["overlap"], "student": {"model": "s", **model}, "base": {"model": "b", **model}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """A run without a signal."""
    run = recipe.parent / "whole"
    assert distill("run", recipe, "--run-dir", run).returncode == 0
    return run


def distill(*arguments: object) -> subprocess.CompletedProcess[str]:
    return interrupted("none", "nothing", signal.SIGINT, *arguments)


def interrupted(
    event: str, place: str, number: int, *arguments: object, swallowed: bool = False
) -> subprocess.CompletedProcess[str]:
    how = "swallowed" if swallowed else "raised"
    command = [sys.executable, "-P", "-c", CHILD, event, place, str(int(number)), how, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)


def last_line(finished: subprocess.CompletedProcess[str]) -> str:
    """The line that ends an interrupted command, after lines of its progress and no traceback."""
    assert "Traceback" not in finished.stderr
    assert finished.returncode in (130, -signal.SIGINT), finished.stderr
    return finished.stderr.splitlines()[-1]


def rows(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in FILES}


MOMENTS = [
    ("import", "typer", ""),
    ("import", "aiohttp", ""),
    ("sqlite3.connect", "journal.sqlite", ""),
    ("os.rename", "sessions.jsonl", "collect"),
    ("os.rename", "kept.jsonl", "curate"),
    ("os.rename", "scores.json", "compare"),
    ("os.rename", "report.html", "report"),
]


@pytest.mark.parametrize(("event", "place", "stage"), MOMENTS, ids=[moment[1] for moment in MOMENTS])
def test_a_signal_at_any_moment_of_a_run_is_one_line_and_the_run_goes_on(
    event, place, stage, recipe, whole, server, tmp_path
):
    run = tmp_path / "run"
    number = signal.SIGTERM if stage else signal.SIGINT
    line = last_line(interrupted(event, place, number, "run", recipe, "--run-dir", run))
    assert line.startswith(f"error: interrupted in {stage}; " if stage else "error: interrupted")
    assert "run the same command again to go on" in line
    bought = server.count
    assert distill("run", recipe, "--run-dir", run).returncode == 0
    assert rows(run) == rows(whole)
    assert list(run.rglob(".*.????????")) == []
    assert stage == "" or server.count == bought + (6 if stage in ("collect", "curate") else 0)  # compare asks 6


@pytest.mark.parametrize("stage", ["collect", "compare"])
def test_a_signal_in_the_tail_of_a_stage_leaves_it_to_be_done_again(stage, recipe, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    line = last_line(interrupted("os.rename", "run.json", signal.SIGINT, stage, run, "--redo", stage))
    assert line.startswith("error: interrupted")
    assert distill(stage, run).returncode == 0
    assert rows(run) == rows(whole)


def test_a_signal_that_a_library_swallows_ends_the_command_before_anything_is_asked(recipe, server):
    run, before = recipe.parent / "swallowed", server.count
    finished = interrupted(
        "sqlite3.connect", "journal.sqlite", signal.SIGINT, "run", recipe, "--run-dir", run, swallowed=True
    )
    assert last_line(finished).startswith("error: interrupted")
    assert server.count == before


def test_an_import_that_is_interrupted_leaves_nothing(tmp_path):
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"instruction": "Sing.", "output": "La."}) + "\n")
    line = last_line(
        interrupted("os.rename", "out.jsonl", signal.SIGTERM, "import", source, "--from", "alpaca", "--out", out)
    )
    assert line.startswith("error: interrupted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


@pytest.mark.parametrize("place", ["distill.cli.commands", "torch"])
def test_a_signal_while_serve_imports_its_libraries_is_no_traceback(place):
    finished = interrupted("import", place, signal.SIGTERM, "serve", "smollm2", "--port", "0")
    assert "Traceback" not in finished.stderr
    assert finished.returncode in (130, -signal.SIGINT, -signal.SIGTERM)


def test_a_signal_while_train_imports_torch_is_one_line(recipe, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    document = {**yaml.safe_load(recipe.read_text()), "student": {"model": "smollm2"}, "train": {"epochs": 1}}
    (recipe.parent / "trained.yaml").write_text(yaml.safe_dump(document))
    arguments = ("train", recipe.parent / "trained.yaml", "--run-dir", run)
    line = last_line(interrupted("import", "torch", signal.SIGINT, *arguments))
    assert line.startswith("error: interrupted")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_command_at_once_whatever_it_waits_for(number, recipe, tmp_path):
    with MockServer(answer=answer, latency_seconds=60.0) as slow:
        text = recipe.read_text().replace(yaml.safe_load(recipe.read_text())["teacher"]["base_url"], slow.url)
        (tmp_path / "tasks.jsonl").write_bytes((recipe.parent / "tasks.jsonl").read_bytes())
        (tmp_path / "recipe.yaml").write_text(text)
        command = [
            sys.executable,
            "-P",
            "-m",
            "distill",
            "collect",
            tmp_path / "recipe.yaml",
            "--run-dir",
            tmp_path / "r",
        ]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        while slow.count < 8:
            time.sleep(0.02)
        child.send_signal(number)
        time.sleep(0.3)
        assert child.poll() is None  # it waits for the answers in flight
        started = time.monotonic()
        child.send_signal(number)
        _, said = child.communicate(timeout=30)
    assert time.monotonic() - started < 1.0
    assert child.returncode == 130
    assert "Traceback" not in said


HELD = """
import ctypes, os, sys, time
def hook(name, arguments):
    if name == "import" and arguments[0] == "typer" and not held:
        held.append(True)
        try:
            for _ in range(int(sys.argv[1])):
                os.kill(os.getpid(), int(sys.argv[2]))
                time.sleep(0.1)
        except KeyboardInterrupt:
            pass
        os.write(1, b"held")
        lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
        lock(mutex), lock(mutex)
held = []
sys.addaudithook(hook)
from distill.cli.main import main
main(["doctor"])
"""
"""The command line, where C code holds the interpreter's lock for ever, after signals to itself."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("before", [0, 1])
def test_the_second_signal_ends_a_command_within_a_second_while_c_code_holds_the_lock(number, before):
    command = [sys.executable, "-P", "-c", HELD, str(before), str(int(number))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as child:
        assert child.stdout is not None
        assert child.stdout.read(4) == b"held"
        for _ in range(2 - before):
            time.sleep(0.2)
            assert child.poll() is None
            child.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.9)
        child.kill()
    assert child.returncode == -number
