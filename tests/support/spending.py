"""Runs a command and measures what it spends."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Spent:
    """The end of a command."""

    code: int
    output: str
    cpu_seconds: float
    megabytes: float
    """Of memory at its peak."""


def spend(*arguments: str, cwd: Path) -> Spent:
    """Run `distill` with these arguments; both of its outputs are joined."""
    command = [sys.executable, "-P", "-m", "distill", *arguments]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Spent(process.returncode, output, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)
