"""A real OpenAI-compatible server on loopback that misbehaves on demand, for tests of everything that asks one.

    with LoopbackServer(latency_seconds=0.05, misdeed=first(3, status(429, {"Retry-After": "1"}))) as server:
        ... server.url, server.count, server.bodies

`python -m distill.loopback --latency 0.05` runs one in the foreground: it prints its address first, and its counters
as one line of JSON when it is told to end. `GET /stats` gives the counters while it runs. With `--fast` it answers as
quickly as one core can, always the same, to measure clients against.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from aiohttp import web

DRIP_PIECES = 20
"""Into how many pieces a dripped body is cut; an answer of some hundred bytes then comes about ten at a time."""
MOST_429 = 0.04
"""The most, as a share of all requests, that `faults` answers with 429; by chance a few thousand stay under 5%."""
UNSET_MAX_TOKENS = 16
"""What a token limit reckons for an answer whose request gives no bound; the old default of /completions."""


@dataclass(frozen=True, slots=True)
class Misdeed:
    """What the server does instead of answering; a `drip` is an answer, only a slow one."""

    kind: Literal["status", "hang", "reset", "truncated", "drip"]
    code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    seconds: float = 0.0
    """How long a drip takes."""


def status(code: int, headers: Mapping[str, str] | None = None, body: Any = None) -> Misdeed:
    """An HTTP status with an error body of OpenAI's shape, or the body given."""
    said = {"error": {"message": f"this is a {code}", "type": "test"}} if body is None else body
    text = said if isinstance(said, str) else json.dumps(said)
    return Misdeed("status", code, {"Content-Type": "application/json", **(headers or {})}, text)


def drip(seconds: float) -> Misdeed:
    """The right answer, its body a few bytes at a time over this long."""
    return Misdeed("drip", seconds=seconds)


def _error(message: str, kind: str, code: str | None) -> dict[str, Any]:
    """OpenAI's error body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


HANG = Misdeed("hang")
RESET = Misdeed("reset")
TRUNCATED = Misdeed("truncated")
SLOW_DRIP = drip(0.5)
HTML = Misdeed("status", 200, {"Content-Type": "text/html"}, "<html><title>Bad gateway</title><p>try later</p></html>")
EMPTY = Misdeed("status", 200, {"Content-Type": "application/json"}, '{"choices": []}')
BAD_REQUEST = status(400, body=_error("max_tokens is too large", "invalid_request_error", None))
UNAUTHORISED = status(401, body=_error("Incorrect API key provided", "invalid_request_error", "invalid_api_key"))
NO_MODEL = status(404, body=_error("The model `m` does not exist", "invalid_request_error", "model_not_found"))
FAULTS = (*map(status, (500, 502, 503, 408, 409, 425)), RESET, TRUNCATED, HTML, EMPTY, HANG)
"""Every way to fail that may pass, but being told to wait."""


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


def some(share: float, misdeed: Misdeed, *, seed: int = 0) -> Script:
    """Misbehaves at a share of the requests, 0 to 1, drawn from the request's number."""
    return lambda number, body: misdeed if _draw(seed, number).random() < share else None


def faults(share: float, *, seed: int = 0, retry_after_seconds: float = 1.0, drip_seconds: float = 0.5) -> Script:
    """Fails a share of the requests, 0 to 1, in every way that may pass, drawn from the request's number.

    The ways are equally frequent, but 429, with and without Retry-After, comes at most at `MOST_429` of all requests.
    Besides, as many as fail in any one way are answered in drips.
    """
    waits = [status(429), status(429, {"Retry-After": f"{retry_after_seconds:g}"})]
    each = share / (len(FAULTS) + len(waits))
    waiting = min(MOST_429, each * len(waits))

    def script(number: int, body: dict[str, Any]) -> Misdeed | None:
        chance = _draw(seed, number)
        at = chance.random()
        if at < share:
            return chance.choice(waits if at < waiting else FAULTS)
        return drip(drip_seconds) if at < share + each else None

    return script


def _draw(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed}:{number}")


def question(body: Mapping[str, Any]) -> str:
    """The last thing asked in a request's body."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def echo(body: Mapping[str, Any]) -> str:
    """The default answer."""
    return f"answer to {question(body)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """What the server lets through in any `per_seconds`; a request over a limit is answered 429, and is not counted.

    A request's tokens are the words of its question and the bound of its answer (`max_tokens`).
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    per_seconds: float = 60.0
    """What counts as a minute; shorter for tests."""
    headers: bool = True
    """Whether every response says x-ratelimit-limit-, -remaining- and -reset-."""
    retry_after: bool = True
    """Whether a 429 says Retry-After, in whole seconds, rounded up."""


class _Window:
    """One limit over a sliding window: what was let through in the last `seconds`."""

    def __init__(self, name: str, limit: int, seconds: float) -> None:
        self.name = name
        self.limit = limit
        self.used = 0
        self._seconds = seconds
        self._taken: deque[tuple[float, int]] = deque()

    def wait_seconds(self, amount: int, now: float) -> float:
        """How long until this much fits; infinite where it never will."""
        self._forget(now)
        over = self.used + amount - self.limit
        if over <= 0:
            return 0.0
        for at, taken in self._taken:
            over -= taken
            if over <= 0:
                return at + self._seconds - now
        return math.inf

    def take(self, amount: int, now: float) -> None:
        """Count what is let through."""
        self._taken.append((now, amount))
        self.used += amount

    def headers(self, now: float) -> dict[str, str]:
        """The limit, what is left of it, and how long until all of it is."""
        self._forget(now)
        reset = self._taken[-1][0] + self._seconds - now if self._taken else 0.0
        values = {"limit": self.limit, "remaining": self.limit - self.used, "reset": duration(reset)}
        return {f"x-ratelimit-{value}-{self.name}": str(said) for value, said in values.items()}

    def _forget(self, now: float) -> None:
        while self._taken and self._taken[0][0] + self._seconds <= now:
            self.used -= self._taken.popleft()[1]


def duration(seconds: float) -> str:
    """As rate limit headers write it: `120ms`, `1s`, `6m0s`, `1h0m0s`; rounded up to a millisecond."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    said = f"{rest / 1000:g}s"
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60}m{said}"
    return f"{minutes}m{said}" if minutes else said


class _Gate:
    """The limits of one server."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        given = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        self._windows = [_Window(name, n, limits.per_seconds) for name, n in given.items() if n is not None]

    def refusal(self, body: Mapping[str, Any]) -> Misdeed | None:
        """The 429 for a request that does not fit; one that does is counted."""
        if not self._windows:
            return None
        now = time.monotonic()
        amounts = {"requests": 1, "tokens": _tokens(body)}
        waits = [(window.wait_seconds(amounts[window.name], now), window) for window in self._windows]
        wait, window = max(waits, key=lambda pair: pair[0])
        if wait > 0:
            return self._refuse(window, wait)
        for window in self._windows:
            window.take(amounts[window.name], now)
        return None

    def _refuse(self, window: _Window, wait: float) -> Misdeed:
        again = "It is larger than the limit." if wait == math.inf else f"Please try again in {duration(wait)}."
        said = f"Rate limit reached on {window.name} per min: Limit {window.limit}, Used {window.used}. {again}"
        told = self._limits.retry_after and wait < math.inf
        headers = {"Retry-After": str(math.ceil(wait))} if told else {}
        return status(429, headers, _error(said, window.name, "rate_limit_exceeded"))

    def headers(self) -> dict[str, str]:
        """What every response says of the limits."""
        if not self._limits.headers:
            return {}
        now = time.monotonic()
        return {name: said for window in self._windows for name, said in window.headers(now).items()}


def _tokens(body: Mapping[str, Any]) -> int:
    bound = body.get("max_tokens") or body.get("max_completion_tokens") or UNSET_MAX_TOKENS
    return len(question(body).split()) + int(bound)


class _LoopThread:
    """An event loop in a thread of its own, with a server in it that `start` made and `end` takes down."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def start(self, start: Callable[[], Awaitable[int]], end: Callable[[], Awaitable[None]]) -> int:
        """Run until `stop`; returns the port, which `start` returned. Raises `OSError` where the port is taken."""
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


class LoopbackServer:
    """The server, in a thread of its own; use it in a `with` block. Everything it saw stays readable afterwards.

    `misdeed` decides after the latency, `limits` before it. With `keep=False` the requests themselves are not kept, so
    that it can run for long; the counters are.
    """

    def __init__(
        self,
        *,
        latency_seconds: float | Callable[[int], float] = 0.0,
        misdeed: Script = never,
        answer: Callable[[Mapping[str, Any]], str | dict[str, Any]] = echo,
        finish: str = "stop",
        limits: RateLimits | None = None,
        keep: bool = True,
        port: int = 0,
    ) -> None:
        self._latency_seconds = latency_seconds
        self._misdeed = misdeed
        self._answer = answer
        self._finish = finish
        self._gate = _Gate(limits or RateLimits())
        self._keep = keep
        self._port = port
        self._answers: Counter[int] = Counter()
        self.count = 0
        """Requests received."""
        self.answered = 0
        """Answers written whole; misdeeds do not count, not even those with status 200, but drips do."""
        self.limited = 0
        """Requests that the limits refused; the 429s of misdeeds are in `statuses` only."""
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
        """What was asked, in order of arrival."""
        return [question(body) for body in self.bodies]

    def times_answered(self, asked: str) -> int:
        """How often this question was answered."""
        return self._answers[hash(asked)]

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

    def __enter__(self) -> LoopbackServer:
        self._thread = _LoopThread(asyncio.new_event_loop())
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
            misdeed = self._limit(body)
            if misdeed is None:
                latency = self._latency_seconds
                await asyncio.sleep(latency(number) if callable(latency) else latency)
                misdeed = self._misdeed(number, body)
            return await self._write(request, body, misdeed)
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

    def _limit(self, body: Mapping[str, Any]) -> Misdeed | None:
        refusal = self._gate.refusal(body)
        self.limited += refusal is not None
        return refusal

    async def _write(self, request: web.Request, body: dict[str, Any], misdeed: Misdeed | None) -> web.StreamResponse:
        if misdeed is not None and misdeed.kind in {"hang", "reset", "truncated"}:
            return await _break(request, misdeed)
        refused = misdeed is not None and misdeed.kind == "status"
        response = _refused(misdeed) if misdeed is not None and refused else self._reply(body)
        response.headers.update(self._gate.headers())
        with suppress(ConnectionError):  # the client has gone
            await _send(request, response, drip_seconds=misdeed.seconds if misdeed else 0.0)
            self.statuses[response.status] += 1
            if not refused:
                self.answered += 1
                self._answers[hash(question(body))] += 1
        return response

    def _reply(self, body: dict[str, Any]) -> web.Response:
        said = self._answer(body)
        if isinstance(said, dict):
            return web.json_response(said)
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._finish}
        choice |= {"text": said} if "prompt" in body else {"message": {"role": "assistant", "content": said}}
        usage = {"prompt_tokens": len(question(body).split()), "completion_tokens": len(said.split())}
        return web.json_response({"id": "x", "model": body["model"], "choices": [choice], "usage": usage})


def _refused(misdeed: Misdeed) -> web.Response:
    return web.Response(status=misdeed.code, headers=dict(misdeed.headers), body=misdeed.body.encode())


async def _send(request: web.Request, response: web.Response, *, drip_seconds: float) -> None:
    """Write a response whole, so that it is counted only then; its body in pieces over `drip_seconds`, if any."""
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


async def _break(request: web.Request, misdeed: Misdeed) -> web.StreamResponse:
    if misdeed.kind == "hang":
        await asyncio.sleep(3600)
    if misdeed.kind == "truncated":
        response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"choices": [{"message": {"content": "half an ans')
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


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
    """A server that does nothing but answer, to measure clients against; over 15,000 requests a second on one core.

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
        self._thread = _LoopThread(_fastest_loop())
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; the address goes to standard output first, the counters last."""
    given = _parser().parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with _server(given) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        ended.wait()
    sys.stdout.write(f"{json.dumps(server.stats())}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m distill.loopback", description="An endpoint on loopback, to test.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.05, metavar="SECONDS")
    parser.add_argument("--faults", type=float, default=0.0, metavar="SHARE", help="of the requests that fail, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="which requests fail")
    parser.add_argument("--rpm", type=int, metavar="N", help="requests a minute; 429 beyond")
    parser.add_argument("--tpm", type=int, metavar="N", help="tokens a minute; 429 beyond")
    parser.add_argument("--fast", action="store_true", help="one answer for all, as fast as one core can, no faults")
    return parser


def _server(given: argparse.Namespace) -> LoopbackServer | FastServer:
    if given.fast:
        return FastServer(latency_seconds=given.latency, port=given.port)
    return LoopbackServer(
        latency_seconds=given.latency,
        misdeed=faults(given.faults, seed=given.seed) if given.faults else never,
        limits=RateLimits(requests_per_minute=given.rpm, tokens_per_minute=given.tpm),
        keep=False,
        port=given.port,
    )


if __name__ == "__main__":
    main()
