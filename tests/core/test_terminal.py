"""What others write never steers the terminal: it is made visible where it leaves the process, and in the log."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from distill.cli import main
from distill.core import console
from distill.pipeline.parts import load_recipe
from distill.run.record import opened
from tests.support.echo_server import EchoServer
from tests.support.run_folder import change, write_run

HOSTILE = "\x1b]0;title\x07\x1b[2J\x1b]8;;http:evil\x1b\\link\x1b]8;;\x1b\\\rover\u202eti\x9b31m"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LINK = "b[link=http:evil]x.jsonl"


def printed(*commands: list[str]) -> str:
    """Standard output and standard error of the commands."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        for command in commands:
            main._code(command)
    return out.getvalue()


def test_a_reader_that_has_left_ends_no_work(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        seen: list[str] = []
        with console.observed(seen.append):
            console.say("one")
            console.say("two")
    assert seen == ["one", "two"]


def test_what_the_locale_cannot_write_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console.write_any_text()
    console.result("größe → 3")
    assert stream.buffer.getvalue() == rb"gr\xf6\xdfe \u2192 3" + b"\n"


def recipe(folder: Path, **sections: object) -> str:
    """A recipe that collects answers to two tasks, with these sections."""
    (folder / "tasks.jsonl").write_text("".join(f'{{"id": "t{n}", "instruction": "An odd {n}."}}\n' for n in range(2)))
    document = {
        "name": "hostile",
        "teacher": {"model": "m", "base_url": "http://127.0.0.1:9/v1", "terms": "ours"},
        "collect": {"strategy": "answer", "tasks": "tasks.jsonl", "attempts": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**document, **sections}))
    return str(path)


def hostile_answers(folder: Path) -> list[list[str]]:
    run = write_run(folder / "run", prompts=2)
    change(run / "answers.jsonl", lambda row: {**row, "id": f"{row['id']}{HOSTILE}"})
    change(
        run / "run.json", lambda record: json.loads(json.dumps(record).replace("smollm2", json.dumps(HOSTILE)[1:-1]))
    )
    return [["show", str(run), "--worst", "2"], ["show", str(run)], ["diff", str(run), str(run)]]


def hostile_file(folder: Path) -> list[list[str]]:
    path = folder / LINK
    row = {HOSTILE: 1, "messages": [{"role": HOSTILE, "content": "x"}]}
    path.write_text(f"{json.dumps(row)}\n{json.dumps(HOSTILE)}\n")
    out = str(folder / "out.jsonl")
    return [["import", str(path), "--from", form, "--out", out] for form in ("openai", "sharegpt", "alpaca", HOSTILE)]


CASES = {
    "a key of a recipe": lambda folder: [["check", recipe(folder, **{HOSTILE: 1})]],
    "a part of a recipe": lambda folder: [["check", recipe(folder, curate=[{"filter": HOSTILE.replace(":", "")}])]],
    "a setting": lambda folder: [["check", recipe(folder), "--set", f"{HOSTILE}=1"]],
    "a path": lambda folder: [[name, str(folder / HOSTILE)] for name in ("check", "run", "show", "report", "chat")],
    "an option": lambda folder: [["run", f"--{HOSTILE}"], [HOSTILE], ["show"], ["export", "x", "--to", HOSTILE]],
    "a file": hostile_file,
    "answers": hostile_answers,
}


@pytest.mark.parametrize("case", CASES)
def test_text_of_others_is_made_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    text = printed(*CASES[case](tmp_path))
    assert STEERING.findall(text) == []
    assert "⟦U+001B⟧" in text or r"\x1b" in text


def test_what_an_endpoint_says_is_made_visible(tmp_path: Path) -> None:
    with EchoServer(HOSTILE, "error") as server:
        path = recipe(tmp_path, teacher={"model": "m", "base_url": server.url, "terms": "ours"})
        text = printed(["run", path, "--run-dir", str(tmp_path / "run")])
    assert "⟦U+001B⟧" in text
    assert STEERING.findall(text) == []


def test_the_log_of_a_run_is_as_safe_as_the_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    with opened(tmp_path / "run", load_recipe(recipe(tmp_path))), redirect_stderr(out):
        console.warn(HOSTILE)
    log = (tmp_path / "run/run.log").read_text()
    assert "warning: ⟦U+001B⟧]0;title" in log
    assert STEERING.findall(out.getvalue() + log) == []


def test_a_traceback_and_what_libraries_log_are_made_visible() -> None:
    out = io.StringIO()
    with redirect_stderr(out):
        console.crashed(ValueError, ValueError(HOSTILE), None)
        console.LibraryLog().handle(logging.makeLogRecord({"msg": HOSTILE}))
    assert out.getvalue().count("⟦U+001B⟧]0;title") == 2
    assert STEERING.findall(out.getvalue()) == []


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0, None, "USD 0.00"), (1e-05, None, "USD 0.000010"), (0.00025, None, "USD 0.00025"), (0.5, None, "USD 0.50"),
        (0.1234, None, "USD 0.1234"), (1.00025, None, "USD 1.00"), (1234.5, None, "USD 1,234.50"),
        (0.0003, 0.0101, "USD 0.0003 to 0.0101"), (0.5, 2, "USD 0.50 to 2.00"), (3, 3, "USD 3.00"),
    ],
)  # fmt: skip
def test_sums_of_money_have_cents_or_four_decimals_and_two_digits(low: float, high: float | None, text: str) -> None:
    assert console.money(low, high) == text


BAR = f"""
from distill.core import console
with console.progress({LINK + HOSTILE!r}, 2) as bar:
    bar.update(1, note={LINK + HOSTILE!r})
console.hint("a hint")
console.hint("a hint")
console.result(console.painted({HOSTILE!r}, "added"))
console.result("⟪0123456789abcdef added⟫plain")
"""


def test_on_a_terminal_a_progress_bar_shows_names_as_they_are_and_colours_are_our_own() -> None:
    master, slave = pty.openpty()
    environment = {**{key: value for key, value in os.environ.items() if key != "NO_COLOR"}, "COLUMNS": "400"}
    subprocess.run([sys.executable, "-c", BAR], stdout=slave, stderr=slave, env=environment, check=True)
    os.close(slave)
    shown = b""
    while b"plain" not in shown:
        shown += os.read(master, 65536)
    os.close(master)
    text = shown.decode()
    assert LINK in text
    assert text.count("a hint") == 1
    assert "\x1b]" not in text
    assert "\u202e" not in text
    assert "\x1b[32m⟦U+001B⟧]0;title" in text
    assert "⟪0123456789abcdef added⟫plain" in text


def test_a_bar_logs_what_a_pipe_would_get_and_a_hint_is_for_a_terminal_alone() -> None:
    lines: list[str] = []
    out = io.StringIO()
    with redirect_stderr(out), console.observed(lines.append), console._Bar("collect", None, "") as bar:
        bar.update(3, note=HOSTILE)
        bar._lines._speak()
        console.hint("a hint")
    assert [line.partition(" s, ")[0] for line in lines] == ["collect: 3, 0"]
    assert STEERING.findall("".join(lines)) == []
    assert "a hint" not in out.getvalue()
