"""Rank of this process under a launcher (`accelerate launch`, `torchrun`), and child processes.

`python -c`, `python -m` and spawned processes put the current folder first on the import path, so that a `yaml.py` in a
shared folder would run. Every child is started here, with that turned off. Folders that a user puts on the path stay:
`PYTHONPATH=.` and an empty entry of PYTHONPATH, which means the same. The console script `distill` imports nothing from
the current folder; `python -m distill` does, before any of our code runs.

Stdlib only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor


_SAFE_PATH = "PYTHONSAFEPATH"
"""Any text in this variable keeps the current folder off the import path of child Pythons (3.11 and later)."""


def count() -> int:
    """Number of processes; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """The number of this process among all, from 0."""
    return int(os.environ.get("RANK") or 0)


def number_here() -> int:
    """The number of this process on this machine, from 0, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def is_first() -> bool:
    """Whether this is the process that writes, prints and holds the run folder's lock."""
    return number() == 0


def share_cores(environment: MutableMapping[str, str] | None = None) -> None:
    """Shorten the time that idle OpenMP threads spin, unless the environment sets it; to be called before torch loads.

    By default they spin for milliseconds, which stalls all threads when other processes need the cores. Two threads on
    two cores, 100 times two products of 4×576 and 576×1536, per second: 36 by default, 32 with this setting, 22 without
    spinning, on an idle machine; 0.2 to 4, 15 to 19 and 13 to 30 beside two or three busy processes.
    """
    variables = os.environ if environment is None else environment
    if not any(name in variables for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        variables["GOMP_SPINCOUNT"] = "1000"


@contextmanager
def current_folder_off_path() -> Iterator[None]:
    """Keep the current folder off the import path of every Python started in the block, by libraries too."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_SAFE_PATH, None)
        else:
            os.environ[_SAFE_PATH] = before


def python(*arguments: str) -> list[str]:
    """The command that starts this Python with `arguments`, and imports nothing from the current folder."""
    return [sys.executable, "-P", *arguments]


def start(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a child; `environment` defaults to that of this process, `options` are those of `subprocess.Popen`."""
    return subprocess.Popen(command, env=_inherited(environment), **options)


def run(command: Sequence[str], *, given: str) -> subprocess.CompletedProcess[str]:
    """Run a child to its end with the text `given` on standard input; returns its output as text."""
    return subprocess.run(command, env=_inherited(None), input=given, text=True, capture_output=True, check=False)


def _inherited(environment: Mapping[str, str] | None) -> dict[str, str]:
    return {**(os.environ if environment is None else environment), _SAFE_PATH: "1"}


@contextmanager
def pool(count: int, begin: Callable[..., None], *arguments: object) -> Iterator[ProcessPoolExecutor]:
    """A pool of `count` new processes, each of which first calls `begin(*arguments)`; they end with the block."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with current_folder_off_path():
        executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), begin, arguments)
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)


NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables with the settings of torch's allocator; older versions read only the second."""
OTHERS = ("PYTORCH_HIP_ALLOC_CONF",)
"""Variables that ROCm builds read instead."""


def grow_in_place(environment: MutableMapping[str, str] | None = None) -> None:
    """Let torch's CUDA allocator use expandable segments, unless the environment configures it.

    Packed passes differ in size, so freed blocks of fixed sizes may not fit the next pass. torch reads the setting when
    it first uses a GPU; without a GPU it has no effect.
    """
    variables = os.environ if environment is None else environment
    if not any(name in variables for name in (*NAMES, *OTHERS)):
        variables.update(dict.fromkeys(NAMES, "expandable_segments:True"))
