"""The command line, in a process of its own or in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path


def distill(*arguments: str, cwd=None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distill", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        timeout=120,
    )


def here(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, for what does not depend on the process: a second less for each command."""
    from distill.cli.main import _code

    out, error, before = StringIO(), StringIO(), os.environ.copy()
    os.environ.update(environment)
    try:
        with chdir(folder), redirect_stdout(out), redirect_stderr(error):
            code = _code(list(arguments))
    finally:
        os.environ.clear()
        os.environ.update(before)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


def only_line(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command says, besides where a run sends to and reads from."""
    lines = [line for line in finished.stderr.splitlines() if not line.startswith(("sends to ", "reads "))]
    assert len(lines) == 1, finished.stderr
    return lines[0]


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
