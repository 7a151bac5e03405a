"""A real OpenAI-compatible server on loopback that misbehaves on demand, for tests of everything that asks one.

    with LoopbackServer(latency_seconds=0.05, misdeed=first(3, status(429, {"Retry-After": "1"}))) as server:
        ... server.url, server.count, server.bodies

`python -m distill.loopback --latency 0.05` runs a well-behaved one in the foreground and prints its address.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Misdeed:
    """What the server does instead of answering."""

    kind: Literal["status", "hang", "reset", "truncated"]
    code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""


HANG = Misdeed("hang")
RESET = Misdeed("reset")
TRUNCATED = Misdeed("truncated")
HTML = Misdeed("status", 200, {"Content-Type": "text/html"}, "<html><title>Bad gateway</title><p>try later</p></html>")
EMPTY = Misdeed("status", 200, {"Content-Type": "application/json"}, '{"choices": []}')


def status(code: int, headers: Mapping[str, str] | None = None, body: Any = None) -> Misdeed:
    """An HTTP status with an error body of OpenAI's shape, or the body given."""
    said = {"error": {"message": f"this is a {code}", "type": "test"}} if body is None else body
    text = said if isinstance(said, str) else json.dumps(said)
    return Misdeed("status", code, {"Content-Type": "application/json", **(headers or {})}, text)


Script = Callable[[int, dict[str, Any]], Misdeed | None]
"""From a request's number (0, 1, … in order of arrival) and its body to a misdeed, or `None` to answer."""


def never(number: int, body: dict[str, Any]) -> Misdeed | None:
    """Answers everything."""
    return None


def first(count: int, misdeed: Misdeed) -> Script:
    """Misbehaves at the first `count` requests."""
    return lambda number, body: misdeed if number < count else None


def asking(text: str, misdeed: Misdeed) -> Script:
    """Misbehaves whenever the question contains `text`."""
    return lambda number, body: misdeed if text in question(body) else None


def question(body: Mapping[str, Any]) -> str:
    """The last thing asked in a request's body."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def echo(body: Mapping[str, Any]) -> str:
    """The default answer."""
    return f"answer to {question(body)}"


class LoopbackServer:
    """The server, in a thread of its own; use it in a `with` block. Everything it saw stays readable afterwards."""

    def __init__(
        self,
        *,
        latency_seconds: float | Callable[[int], float] = 0.0,
        misdeed: Script = never,
        answer: Callable[[Mapping[str, Any]], str | dict[str, Any]] = echo,
        finish: str = "stop",
        port: int = 0,
    ) -> None:
        self._latency_seconds = latency_seconds
        self._misdeed = misdeed
        self._answer = answer
        self._finish = finish
        self._port = port
        self._in_flight = 0
        self.most_in_flight = 0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        """When each request arrived, by `time.monotonic`."""

    @property
    def count(self) -> int:
        """Requests received."""
        return len(self.bodies)

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://127.0.0.1:{self._port}/v1"

    def questions(self) -> list[str]:
        """What was asked, in order of arrival."""
        return [question(body) for body in self.bodies]

    def __enter__(self) -> LoopbackServer:
        started: threading.Event = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=[started], daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving, at once; harmless the second time."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/{path:.*}", self._respond)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", self._port, backlog=4096)
        self._loop.run_until_complete(site.start())
        self._port = runner.addresses[0][1]
        started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = self.count
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.paths.append(request.path)
        self.times.append(time.monotonic())
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            latency = self._latency_seconds
            await asyncio.sleep(latency(number) if callable(latency) else latency)
            misdeed = self._misdeed(number, body)
            return self._reply(body) if misdeed is None else await _misbehave(request, misdeed)
        finally:
            self._in_flight -= 1

    def _reply(self, body: dict[str, Any]) -> web.Response:
        said = self._answer(body)
        if isinstance(said, dict):
            return web.json_response(said)
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._finish}
        choice |= {"text": said} if "prompt" in body else {"message": {"role": "assistant", "content": said}}
        usage = {"prompt_tokens": len(question(body).split()), "completion_tokens": len(said.split())}
        return web.json_response({"id": "x", "model": body["model"], "choices": [choice], "usage": usage})


async def _misbehave(request: web.Request, misdeed: Misdeed) -> web.StreamResponse:
    if misdeed.kind == "status":
        return web.Response(status=misdeed.code, headers=dict(misdeed.headers), body=misdeed.body.encode())
    if misdeed.kind == "hang":
        await asyncio.sleep(3600)
    if misdeed.kind == "truncated":
        response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"choices": [{"message": {"content": "half an ans')
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--latency", type=float, default=0.05)
    arguments.add_argument("--port", type=int, default=0)
    given = arguments.parse_args()
    with LoopbackServer(latency_seconds=given.latency, port=given.port) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        threading.Event().wait()
