"""The mock server's HTTP application."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

from distill.engine.mock_server.faults import Fault, Script, echo, never, question
from distill.engine.mock_server.rate_limits import RateLimitGate, RateLimits
from distill.engine.mock_server.thread import LoopThread

DRIP_PIECES = 20
"""Number of pieces of a dripped body; an answer of some hundred bytes then comes about ten bytes at a time."""


class MockServer:
    """The server, in its own thread; use it in a `with` block. Its record of requests stays readable afterwards.

    `fault` decides after the latency, `limits` before it. With `keep=False` only the counters are kept, not the
    requests, so that the server can run for long.
    """

    def __init__(
        self,
        *,
        latency_seconds: float | Callable[[int], float] = 0.0,
        fault: Script = never,
        answer: Callable[[Mapping[str, Any]], str | dict[str, Any]] = echo,
        finish: str = "stop",
        limits: RateLimits | None = None,
        keep: bool = True,
        port: int = 0,
    ) -> None:
        self._latency_seconds = latency_seconds
        self._fault = fault
        self._answer = answer
        self._finish = finish
        self._gate = RateLimitGate(limits or RateLimits())
        self._keep = keep
        self._port = port
        self._answers: Counter[int] = Counter()
        self.count = 0
        """Requests received."""
        self.answered = 0
        """Answers written whole, drips included; faults do not count, not even those with status 200."""
        self.limited = 0
        """Requests that `limits` refused; the 429s of faults are in `statuses` only."""
        self.statuses: Counter[int] = Counter()
        """Responses written whole, by HTTP status."""
        self.in_flight = 0
        self.most_in_flight = 0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        """When each request arrived, by `time.monotonic`."""

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://127.0.0.1:{self._port}/v1"

    def questions(self) -> list[str]:
        """The questions, in order of arrival."""
        return [question(body) for body in self.bodies]

    def times_answered(self, question: str) -> int:
        """How often this question was answered."""
        return self._answers[hash(question)]

    def stats(self) -> dict[str, Any]:
        """The counters, as JSON; `distinct` questions were answered, one of them `most_answers` times."""
        return {
            "count": self.count,
            "answered": self.answered,
            "distinct": len(self._answers),
            "most_answers": max(self._answers.values(), default=0),
            "limited": self.limited,
            "statuses": {str(code): n for code, n in sorted(self.statuses.items())},
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
        }

    def __enter__(self) -> MockServer:
        self._thread = LoopThread(asyncio.new_event_loop())
        self._port = self._thread.start(self._start, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving, at once; harmless the second time."""
        self._thread.stop()

    async def _start(self) -> int:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/stats", self._tell)
        app.router.add_post("/{path:.*}", self._respond)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=4096).start()
        return int(self._runner.addresses[0][1])

    async def _end(self) -> None:
        await self._runner.cleanup()

    async def _tell(self, request: web.Request) -> web.Response:
        return web.json_response(self.stats())

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = self._note(request, body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            fault = self._limit(body)
            if fault is None:
                latency = self._latency_seconds
                await asyncio.sleep(latency(number) if callable(latency) else latency)
                fault = self._fault(number, body)
            return await self._write(request, body, fault)
        finally:
            self.in_flight -= 1

    def _note(self, request: web.Request, body: dict[str, Any]) -> int:
        number, self.count = self.count, self.count + 1
        if self._keep:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.paths.append(request.path)
            self.times.append(time.monotonic())
        return number

    def _limit(self, body: Mapping[str, Any]) -> Fault | None:
        refusal = self._gate.refusal(body)
        self.limited += refusal is not None
        return refusal

    async def _write(self, request: web.Request, body: dict[str, Any], fault: Fault | None) -> web.StreamResponse:
        if fault is not None and fault.kind in {"hang", "reset", "truncated"}:
            return await _break(request, fault)
        refused = fault is not None and fault.kind == "status"
        response = _refused(fault) if fault is not None and refused else self._reply(body)
        response.headers.update(self._gate.headers())
        with suppress(ConnectionError):  # the client has gone
            await _send(request, response, drip_seconds=fault.seconds if fault else 0.0)
            self.statuses[response.status] += 1
            if not refused:
                self.answered += 1
                self._answers[hash(question(body))] += 1
        return response

    def _reply(self, body: dict[str, Any]) -> web.Response:
        reply = self._answer(body)
        if isinstance(reply, dict):
            return web.json_response(reply)
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._finish}
        choice |= {"text": reply} if "prompt" in body else {"message": {"role": "assistant", "content": reply}}
        usage = {"prompt_tokens": len(question(body).split()), "completion_tokens": len(reply.split())}
        return web.json_response({"id": "x", "model": body["model"], "choices": [choice], "usage": usage})


def _refused(fault: Fault) -> web.Response:
    return web.Response(status=fault.code, headers=dict(fault.headers), body=fault.body.encode())


async def _send(request: web.Request, response: web.Response, *, drip_seconds: float) -> None:
    """Write a whole response, its body in pieces over `drip_seconds`, if any."""
    if not drip_seconds:
        await response.prepare(request)
        await response.write_eof()
        return
    assert isinstance(response.body, bytes)
    dripped = web.StreamResponse(headers={**response.headers, "Content-Length": str(len(response.body))})
    await dripped.prepare(request)
    for piece in _pieces(response.body):
        await asyncio.sleep(drip_seconds / DRIP_PIECES)
        await dripped.write(piece)
    await dripped.write_eof()


def _pieces(body: bytes) -> list[bytes]:
    size = math.ceil(len(body) / DRIP_PIECES)
    return [body[start : start + size] for start in range(0, len(body), size)]


async def _break(request: web.Request, fault: Fault) -> web.StreamResponse:
    if fault.kind == "hang":
        await asyncio.sleep(3600)
    if fault.kind == "truncated":
        response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"choices": [{"message": {"content": "half an ans')
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
