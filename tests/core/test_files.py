"""Files have the permissions that the umask leaves; links, read-only folders and unusable names are one line each."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from distill.cli import main
from tests.support.echo_server import EchoServer
from tests.support.run_folder import write_run

ROOT = Path(__file__).resolve().parents[2]
LONG = "x" * 300


def recipe(folder: Path, url: str) -> str:
    """A recipe with every stage that needs no model of our own."""
    rows = [{"id": f"t{number}", "instruction": f"Question {number}, plain."} for number in range(4)]
    (folder / "tasks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    teacher = {"model": "m", "base_url": url, "terms": "ours", "sampling": {"max_tokens": 50}}
    document = {
        "name": "files",
        "teacher": teacher,
        "collect": {"strategy": "answer", "tasks": "tasks.jsonl", "test": 2},
        "curate": [{"filter": "length", "min_words": 1}],
        "compare": {"metrics": ["overlap"], "student": teacher, "base": teacher},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def printed(*command: str) -> str:
    """What a command prints, which fails."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        assert main._code([*command]) in (1, 2)
    return "".join(_without_hosts(out.getvalue().splitlines(keepends=True)))


def _without_hosts(lines: list[str]) -> list[str]:
    """Without the first lines of a run: what it reads, and where it sends."""
    return [line for line in lines if not line.startswith(("reads ", "sends to "))]


def commands_in_a_process(folder: Path, commands: list[list[str]], *, first: str = "") -> str:
    """Standard error of the commands, one after another in one process."""
    code = f"import os, sys\n{first}\nfrom distill.cli import main\nfor each in {commands!r}: main._code(each)\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DISTILL_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_every_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "work"
    with EchoServer("no secret") as server:
        commands = [
            ["run", recipe(tmp_path, server.url), "--run-dir", "run"],
            ["export", "run", "--to", "parquet", "--out", "parquet"],
            ["export", "run", "--to", "llm_comparator", "--out", "comparator"],
            ["import", "run/kept.jsonl", "--from", "openai", "--out", "imported.jsonl"],
            ["init", "--like", "quickstart"],
        ]
        before = os.umask(umask)
        try:
            folder.mkdir()
            errors = commands_in_a_process(folder, commands)
        finally:
            os.umask(before)
    assert "error" not in errors
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}
    assert len(modes) > 15
    assert {path: mode for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask} == {}


@pytest.mark.parametrize("name", ["run.log", "journal.sqlite", "journal.sqlite-wal", ".lock", "kept.jsonl", "student"])
def test_a_link_in_a_run_folder_is_refused(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", prompts=1, train=False)
    (run / name).symlink_to(tmp_path / "outside")
    path = recipe(tmp_path, "http://127.0.0.1:9/v1")
    for command in (["run", path, "--run-dir", str(run)], ["show", str(run)], ["report", str(run)]):
        (text,) = _without_hosts(printed(*command).splitlines())
        assert text.startswith(f"error: {run / name} is a link to {tmp_path / 'outside'}; ")
    assert not (tmp_path / "outside").exists()


def test_a_student_that_is_a_link_is_not_loaded(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", prompts=1)
    (run / "student").rename(tmp_path / "elsewhere")
    (run / "student").symlink_to(tmp_path / "elsewhere")
    assert printed("serve", str(run)).startswith(f"error: {run / 'student'} is a link to ")


DROP = "import ctypes; [ctypes.CDLL(None).prctl(24, number) for number in (1, 2)]"
"""Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, from the next exec on, root may write no more than others."""


def test_a_folder_that_is_read_only_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    write_run(folder / "run", prompts=1, train=False)
    recipe(folder, "http://127.0.0.1:9/v1")
    commands = [
        ["run", "recipe.yaml"],
        ["report", "run"],
        ["export", "run", "--to", "llm_comparator", "--out", "comparator"],
        ["import", "run/answers.jsonl", "--from", "openai", "--out", "imported.jsonl"],
        ["init", "--like", "quickstart"],
    ]
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    again = f"if len(sys.argv) < 2: {DROP}; os.execv(sys.executable, [*sys.orig_argv, 'again'])"
    try:
        lines = _without_hosts(commands_in_a_process(folder, commands, first=again).splitlines())
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert len(lines) == len(commands)
    assert all(line.startswith("error: ") for line in lines)
    assert sum("Permission denied" in line for line in lines) >= 4


@pytest.mark.parametrize(
    "command",
    [
        ["check", LONG],
        ["run", LONG],
        ["show", LONG],
        ["serve", LONG],
        ["import", LONG, "--from", "openai", "--out", "out.jsonl"],
        ["import", "tasks.jsonl", "--from", "openai", "--out", LONG],
        ["run", "recipe.yaml", "--run-dir", LONG],
        ["check", "recipe.yaml", "--set", f"collect.tasks={LONG}"],
        ["smoke", LONG],
        ["diff", LONG, LONG],
    ],
    ids=" ".join,
)
def test_a_name_that_is_too_long_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe(tmp_path, "http://127.0.0.1:9/v1")
    text = printed(*command)
    assert text.startswith("error: ")
    assert "File name too long" in text or "no file" in text
    assert text.count("\n") == 1
