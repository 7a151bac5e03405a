"""The rivals' environments: one each, made once, outside the repository, for their pins exclude each other's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGES = {"curator": "bespokelabs-curator==0.1.27", "openai": "openai", "datasketch": "datasketch"}
"""By environment; curator at the fastest version seen (0.1.31 is 1.6 times slower), the others at their newest."""


def folder() -> Path:
    """Where environments, scratch journals and results go: `DISTILL_BENCH`, else a folder of the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("DISTILL_BENCH", cache / "distill" / "bench"))


def python(rival: str) -> Path | None:
    """The interpreter of a rival's environment, made if need be; `None`, with a line why, where it cannot be made."""
    home = folder() / "rivals" / rival
    ready = home / ".installed"
    if not ready.exists() or ready.read_text() != PACKAGES[rival]:
        sys.stderr.write(f"installing {PACKAGES[rival]} into {home}\n")
        pip = [home / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        for command in ([sys.executable, "-m", "venv", home], [*pip, PACKAGES[rival]]):
            if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
                sys.stderr.write(f"cannot install {PACKAGES[rival]}; going on without it\n")
                return None
        ready.write_text(PACKAGES[rival])
    return home / "bin" / "python"
