"""Runs an event loop in a thread, for a server next to the test that calls it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future


class LoopThread:
    """An event loop in its own thread, with a server that `start` begins and `end` stops."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def start(self, start: Callable[[], Awaitable[int]], end: Callable[[], Awaitable[None]]) -> int:
        """Run until `stop`; returns the port that `start` returns. Raises `OSError` where the port is taken."""
        port: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=[start, end, port], daemon=True)
        self._thread.start()
        return port.result(10)

    def _run(self, start: Callable[[], Awaitable[int]], end: Callable[[], Awaitable[None]], port: Future[int]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            port.set_result(self._loop.run_until_complete(start()))
            self._loop.run_forever()
        except OSError as error:
            port.set_exception(error)
        self._loop.run_until_complete(end())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def stop(self) -> None:
        """End it, at once; harmless the second time."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
