"""A minimal server that always gives the same answer, as fast as one core can; for benchmarks of clients.

`python -m tests.benchmarks.fast_server SECONDS` runs one with that latency: it prints its address first.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from distill.engine.mock_server.thread import LoopThread

CANNED = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a short answer"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11},
}
"""What a `FastServer` answers to everything."""


_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


def _http(status: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


class FastServer:
    """A server that does nothing but answer, for benchmarks; over 15,000 requests per second on one core.

    It reads POSTs framed by Content-Length on connections kept alive, and waits `latency_seconds` before each answer.
    A client must wait for one answer before it asks again on the same connection.
    """

    def __init__(self, *, latency_seconds: float = 0.0, port: int = 0) -> None:
        self.latency_seconds = latency_seconds
        self._port = port
        self.count = 0
        """Requests received."""
        self.answered = 0
        """Answers written."""
        self.most_in_flight = 0
        self.open: set[asyncio.Transport] = set()
        """Connections."""
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://127.0.0.1:{self._port}/v1"

    def stats(self) -> dict[str, Any]:
        """The counters, as JSON."""
        return {"count": self.count, "answered": self.answered, "most_in_flight": self.most_in_flight}

    def __enter__(self) -> FastServer:
        self._thread = LoopThread(_fastest_loop())
        self._port = self._thread.start(self._start, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving, at once; harmless the second time."""
        self._thread.stop()

    async def _start(self) -> int:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Exchange(self, loop), "127.0.0.1", self._port, backlog=4096)
        return int(self._server.sockets[0].getsockname()[1])

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        for transport in self.open:
            transport.abort()


def _fastest_loop() -> asyncio.AbstractEventLoop:
    """The loop of uvloop, where that is installed."""
    with suppress(ImportError):
        loop: asyncio.AbstractEventLoop = import_module("uvloop").new_event_loop()
        return loop
    return asyncio.new_event_loop()


class _Exchange(asyncio.Protocol):
    """One connection of a `FastServer`."""

    _answer = _http("200 OK", CANNED)

    def __init__(self, server: FastServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.open.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget it."""
        self._server.open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        """Take every request that has come whole."""
        self._unread += data
        while (end := self._unread.find(b"\r\n\r\n")) >= 0:
            head = self._unread[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._unread) < whole:
                return
            self._unread = self._unread[whole:]
            self._take(head)

    def _take(self, head: bytes) -> None:
        server = self._server
        if not head.startswith(b"POST "):
            found = head.startswith(b"GET /stats ")
            self._transport.write(_http("200 OK", server.stats()) if found else _http("404 Not Found", {}))
            return
        server.count += 1
        server.most_in_flight = max(server.most_in_flight, server.count - server.answered)
        if server.latency_seconds:
            self._loop.call_later(server.latency_seconds, self._reply)
        else:
            self._reply()

    def _reply(self) -> None:
        self._server.answered += 1
        self._transport.write(self._answer)


def main() -> None:
    """Serve until SIGTERM."""
    with FastServer(latency_seconds=float(sys.argv[1])) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
