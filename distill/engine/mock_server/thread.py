"""Runs an event loop in a thread, for a server next to the test that calls it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable


class LoopThread:
    """An event loop in its own thread, with a server that `start` begins and `end` stops."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def start(self, start: Callable[[], Awaitable[int]], end: Callable[[], Awaitable[None]]) -> int:
        """Run until `stop`; returns the port that `start` returns. Raises `OSError` where the port is taken."""
        self._port: int | OSError = OSError("the server did not start within 10 s")
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[start, end, started], daemon=True)
        self._thread.start()
        started.wait(10)
        if isinstance(self._port, OSError):
            raise self._port
        return self._port

    def _run(
        self, start: Callable[[], Awaitable[int]], end: Callable[[], Awaitable[None]], started: threading.Event
    ) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._port = self._loop.run_until_complete(start())
            started.set()
            self._loop.run_forever()
        except OSError as error:
            self._port = error
        self._loop.run_until_complete(end())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
        started.set()

    def stop(self) -> None:
        """End it, at once; harmless the second time."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
