"""Rank of this process under a launcher (`accelerate launch`, `torchrun`), and child processes.

Python puts the current folder first on the path of `python -c`, of `python -m` and of spawned processes, so that a
`yaml.py` in a shared folder would run there. Every child is started here, with that turned off. What a user
puts on the path stays there: `PYTHONPATH=.` and an empty entry of PYTHONPATH, which means the same. The console script
`distill` looks up nothing in the current folder; `python -m distill` does, before any of our code runs.

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
"""Any text in this variable keeps the current folder off the path of each Python below (3.11 and later)."""


def count() -> int:
    """How many there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """Among all, from 0."""
    return int(os.environ.get("RANK") or 0)


def number_here() -> int:
    """Among those on this machine, from 0: the number of the GPU that is its own."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def is_first() -> bool:
    """Whether this is the one that writes, prints and holds the run folder's lock."""
    return number() == 0


def share_cores(environment: MutableMapping[str, str] | None = None) -> None:
    """Have OpenMP's threads spin for a moment only while they wait, unless the environment says how; before torch.

    By default they spin for milliseconds, and where others need the cores each then waits for one that has lost its
    turn. Two threads on two cores, 100 times two products of 4×576 and 576×1536: 36 per second by default, 32 so, 22
    when they sleep at once, on an idle machine; 0.2 to 4, 15 to 19 and 13 to 30 beside two or three busy processes.
    """
    variables = os.environ if environment is None else environment
    if not any(name in variables for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        variables["GOMP_SPINCOUNT"] = "1000"


@contextmanager
def current_folder_off_path() -> Iterator[None]:
    """Have no Python started in the block, by torch or a pool too, import from the current folder."""
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
    """Start a child, whose `environment` is this process's by default; `options` are those of `subprocess.Popen`."""
    return subprocess.Popen(command, env=_inherited(environment), **options)


def run(command: Sequence[str], *, given: str) -> subprocess.CompletedProcess[str]:
    """Start a child with `given` as its standard input, and wait for its end; its output is text."""
    return subprocess.run(command, env=_inherited(None), input=given, text=True, capture_output=True, check=False)


def _inherited(environment: Mapping[str, str] | None) -> dict[str, str]:
    return {**(os.environ if environment is None else environment), _SAFE_PATH: "1"}


@contextmanager
def pool(count: int, begin: Callable[..., None], *arguments: object) -> Iterator[ProcessPoolExecutor]:
    """A pool of `count` fresh processes, each of which calls `begin(*arguments)` first; they end with the block."""
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
"""Variables that ROCm builds read where those are not set."""


def grow_in_place(environment: MutableMapping[str, str] | None = None) -> None:
    """Have torch's allocator use segments that grow, unless the environment sets it otherwise.

    Packed passes are never of one size twice; blocks of fixed sizes that one has freed may not serve the next. torch
    reads the setting when it first uses a GPU, so it has to come before that. Without a GPU it has no effect.
    """
    variables = os.environ if environment is None else environment
    if not any(name in variables for name in (*NAMES, *OTHERS)):
        variables.update(dict.fromkeys(NAMES, "expandable_segments:True"))
