"""Runs a coroutine to completion from synchronous code, even where an event loop is already running (notebooks)."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from distill.core import interrupts

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`; where this thread already runs a loop, in a new loop in another thread, while this one waits.

    Ctrl-C means the same in both: the first cancels `work`, which may clean up and return; the second cancels every
    task. Raises `KeyboardInterrupt` where `work` was cancelled.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        try:
            return asyncio.run(work)
        finally:
            if threading.current_thread() is threading.main_thread():
                interrupts.arm()  # asyncio has set Ctrl-C's handler anew
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loop") as threads:
        return _watched(work, threads)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt` in the block, also within the caller's `asyncio.run`.

    There, the first Ctrl-C would otherwise take effect only when the block returns to the loop.
    """
    handler = signal.getsignal(signal.SIGINT)
    whose = getattr(getattr(handler, "func", None), "__self__", None)
    if threading.current_thread() is not threading.main_thread() or not isinstance(whose, asyncio.Runner):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _watched(work: Coroutine[Any, Any, T], threads: ThreadPoolExecutor) -> T:
    """Wait for the other thread, and forward each Ctrl-C, which only the main thread receives."""
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def watched() -> T:
        task = asyncio.current_task()
        assert task is not None
        begun.set_result((asyncio.get_running_loop(), task))
        return await work

    ended = threads.submit(asyncio.run, watched())
    interrupts = 0
    while True:
        try:
            return ended.result()
        except KeyboardInterrupt:
            if ended.done():
                raise
            interrupts += 1
            loop, task = begun.result()
            loop.call_soon_threadsafe(_cancel, loop, task if interrupts == 1 else None)
        except asyncio.CancelledError:
            if not interrupts:
                raise
            raise KeyboardInterrupt from None


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
    """Cancel the task, or all tasks."""
    for one in asyncio.all_tasks(loop) if task is None else (task,):
        one.cancel()
