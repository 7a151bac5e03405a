"""Runs contenders against servers, each in a process of its own: one core for the server, one for the contender."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals import folder

ROOT = Path(__file__).resolve().parent.parent.parent
CONTENDERS = Path(__file__).resolve().parent / "contenders"
SERVER, CLIENT = 0, 1
"""Which of the allowed cores each of the two gets, where there are two."""


@dataclass(frozen=True, slots=True)
class Check:
    """One number that has a target."""

    what: str
    found: float
    target: float
    """The most that is good; with `at_least`, the least."""
    at_least: bool = False

    @property
    def good(self) -> bool:
        """Whether the target is met."""
        return self.found >= self.target if self.at_least else self.found <= self.target


@dataclass(slots=True)
class Findings:
    """What a benchmark found: rows for a table, with the same columns each, and checks."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def fast_server(latency_seconds: float) -> Iterator[str]:
    """The address of a server that does nothing but answer."""
    line = [sys.executable, "-m", "tests.benchmarks.fast_server", str(latency_seconds)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        _put(process, SERVER)
        try:
            assert process.stdout
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.communicate()


def start(script: str, *options: Any, python: Path | None = None, alone: bool = False) -> subprocess.Popen[str]:
    """Start a contender on one core, or on all, where nothing else runs; its complaints are kept for `finish`."""
    line = [python or sys.executable, CONTENDERS / f"{script}.py", *map(str, options)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not alone:
        _put(process, CLIENT)
    return process


def finish(process: subprocess.Popen[str], *, timeout_seconds: float) -> dict[str, Any]:
    """What a contender says last. Raises `RuntimeError` with its complaint where it fails or does not end in time."""
    with process:
        try:
            out, complaint = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"{process.args} did not end in {timeout_seconds:g} s") from None
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with {process.returncode}:\n{complaint[-3000:]}")
    return dict(json.loads(out.splitlines()[-1]))


def ours(url: str, requests: int, concurrency: int, *options: Any) -> tuple[Any, ...]:
    """What to `start` for our engine; a journal for once goes to the benchmark's own folder."""
    counts = ("--url", url, "--requests", requests, "--concurrency", concurrency)
    return ("ours", *counts, "--scratch", scratch(), *options)


def scratch() -> Path:
    """A folder on a disk."""
    found = folder() / "scratch"
    found.mkdir(parents=True, exist_ok=True)
    return found


def _put(process: subprocess.Popen[str], which: int) -> None:
    """Keep a process that has just begun, with all its threads to come, on one core; not where there is only one."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            os.sched_setaffinity(process.pid, {cores[which]})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned text."""
    if not rows:
        return ""
    lines = [
        list(rows[0]),
        *([f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
