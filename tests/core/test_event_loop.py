"""Coroutines from plain code: the same with and without a loop that runs already, Ctrl-C included."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from distill.core import event_loop


def plainly(call: Callable[[], Any]) -> Any:
    return call()


def in_a_loop(call: Callable[[], Any]) -> Any:
    """As a notebook's cell does it: plain code called by a coroutine of the running loop."""

    async def cell() -> Any:
        with event_loop.interruptible():
            return call()

    return asyncio.run(cell())


def interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.fixture(params=[plainly, in_a_loop])
def call(request) -> Callable[[Callable[[], Any]], Any]:
    return request.param


async def doubled(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def failing() -> None:
    raise LookupError("not there")


def test_the_value_comes_back(call):
    assert call(lambda: event_loop.run(doubled(4))) == 8


def test_an_exception_comes_back(call):
    with pytest.raises(LookupError, match="not there"):
        call(lambda: event_loop.run(failing()))


def until_cancelled(times: int, ended: list[str]) -> Callable[[], Awaitable[str]]:
    """Work that goes on until it was cancelled so often, each time interrupted again."""

    async def work() -> str:
        for _ in range(times):
            threading.Timer(0.1, interrupt).start()
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                ended.append("cancelled")
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
        return "gently"

    return work


def test_the_first_ctrl_c_lets_the_work_end_as_it_likes(call):
    ended: list[str] = []
    assert call(lambda: event_loop.run(until_cancelled(1, ended)())) == "gently"
    assert ended == ["cancelled"]


def test_work_that_is_cancelled_by_ctrl_c_raises_it(call):
    async def work() -> None:
        threading.Timer(0.1, interrupt).start()
        await asyncio.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        call(lambda: event_loop.run(work()))


def test_the_second_ctrl_c_cancels_all_that_is_left(call):
    others: list[str] = []

    async def other() -> None:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            others.append("cancelled")
            raise

    async def work() -> None:
        left = asyncio.create_task(other())
        threading.Timer(0.1, interrupt).start()
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            threading.Timer(0.1, interrupt).start()
            await asyncio.wait([left])

    with pytest.raises(KeyboardInterrupt):
        call(lambda: event_loop.run(work()))
    assert others == ["cancelled"]
