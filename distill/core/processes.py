"""Rank of this process under a launcher (`accelerate launch`, `torchrun`), and child processes.

`python -c`, `python -m` and spawned processes put the current folder first on the import path, so that a `yaml.py` in a
shared folder would run. Every child is started here, with that turned off. Folders that a user puts on the path stay:
`PYTHONPATH=.` and an empty entry of PYTHONPATH, which means the same. The console script `distill` imports nothing from
the current folder; `python -m distill` does, before any of our code runs.

No child outlives this process, even after SIGKILL: the Linux kernel sends it SIGTERM when the thread that started it
ends; where that is not the main thread, and on other systems, it is watched for the end of a pipe.

On Windows no child is started: models run within WSL2 there.

Stdlib only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from distill.errors import UnsupportedSystem

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor


_SAFE_PATH = "PYTHONSAFEPATH"
"""Any text in this variable keeps the current folder off the import path of child Pythons (3.11 and later)."""
_PROLOGUE = """
import ctypes, os, select, signal, sys
parent, watch, *command = sys.argv[1:]
target = os.getpid()
if watch == "kernel":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the parent has died")
elif os.fork() == 0:
    os.closerange(0, 3)
    while os.getppid() == target:
        if select.select([int(watch)], [], [], 1)[0]:
            os.kill(target, signal.SIGTERM)
            break
    os._exit(0)
os.execvp(command[0], command)
"""
"""Ties the process to its parent, by PR_SET_PDEATHSIG (1, which exec keeps) or a watcher, and becomes the command."""


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


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_posix() -> None:
    """Raise `UnsupportedSystem` on Windows."""
    if sys.platform == "win32":
        raise UnsupportedSystem(
            "models on this machine need Linux or macOS; on Windows, run distill within WSL2 (type: wsl --install), "
            "or ask an endpoint (teacher.base_url)"
        )


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
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start a child; `environment` defaults to that of this process, `options` are those of `subprocess.Popen`."""
    tied, pipe = _tied(command)
    return subprocess.Popen(tied, env=_inherited(environment), pass_fds=pipe, **options)


def run(command: Sequence[str], *, given: str) -> subprocess.CompletedProcess[str]:
    """Run a child to its end with the text `given` on standard input; returns its output as text."""
    tied, pipe = _tied(command)
    return subprocess.run(
        tied, env=_inherited(None), pass_fds=pipe, input=given, text=True, capture_output=True, check=False
    )


def _tied(command: Sequence[str]) -> tuple[list[str], list[int]]:
    """The command behind the prologue, and the pipe's end that it needs, if any. Raises `UnsupportedSystem`."""
    require_posix()
    by_kernel = sys.platform == "linux" and threading.current_thread() is threading.main_thread()
    pipe = [] if by_kernel else [_lifeline()]
    watch = "kernel" if by_kernel else str(pipe[0])
    return [*python("-c", _PROLOGUE, str(os.getpid()), watch), *command], pipe


@cache
def _lifeline() -> int:
    """The read end of a pipe whose write end stays open until this process dies."""
    return os.pipe()[0]


def _inherited(environment: Mapping[str, str] | None) -> dict[str, str]:
    return {**(os.environ if environment is None else environment), _SAFE_PATH: "1"}


@contextmanager
def pool(count: int, begin: Callable[..., None], *arguments: object) -> Iterator[ProcessPoolExecutor]:
    """A pool of `count` new processes, each of which first calls `begin(*arguments)`; they end with the block."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with current_folder_off_path():
        first = partial(_begin_worker, os.getpid(), begin)
        executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), first, arguments)
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)


def _begin_worker(parent: int, begin: Callable[..., None], *arguments: object) -> None:
    """Tie a pool's process to its parent, without which it would wait for work for ever."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*arguments)


def _end_with_parent() -> None:
    import multiprocessing

    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)


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
