"""The command line, in a process of its own or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
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
    """The one line that a failed command says."""
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, finished.stderr
    return lines[0]
