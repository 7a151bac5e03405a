"""Runs a command and measures what it spends."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MEASURE = """
import json, os, sys
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, sys.argv[1:]), 0)
spent = [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000]
print("\\n" + json.dumps(spent))
"""
"""In a small process of its own, since the peak of a child begins with that of its parent."""


@dataclass(frozen=True)
class Spent:
    """The end of a command."""

    code: int
    output: str
    cpu_seconds: float
    megabytes: float
    """Of memory at its peak."""


def spend(*arguments: str, cwd: Path) -> Spent:
    """Run `distill` with these arguments; its two outputs are joined."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-P", "-m", "distill", *arguments]
    ran = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    output, _, spent = ran.stdout.strip().rpartition("\n")
    code, cpu_seconds, megabytes = json.loads(spent)
    return Spent(code, output.strip(), cpu_seconds, megabytes)
