"""An endpoint that echoes a secret: at any place of its responses, in any spelling, over real HTTP."""

from __future__ import annotations

import asyncio
import html
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from aiohttp import web


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": _escaped,
    "php": lambda key: _escaped(key).replace("/", "\\/"),
    "unicode": lambda key: "".join(f"\\u{ord(one):04x}" for one in key),
    "gson": lambda key: "".join(one if one.isalnum() else f"\\u{ord(one):04X}" for one in key),
    "url": lambda key: quote(key, safe=""),
    "html": lambda key: _escaped(html.escape(key)),
    "entities": lambda key: "".join(one if one.isalnum() else f"&#{ord(one)};" for one in key),
    "go": lambda key: "".join(one if one.isalnum() else f"\\u0026#x{ord(one):x};" for one in key),
    "nested": lambda key: _escaped(_escaped(key)),
}
"""How the inside of a JSON string spells a secret."""
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@dataclass
class EchoServer:
    """Serves on loopback while the `with` block runs; every second request is answered as it should be."""

    secret: str
    place: str = "answer"
    spelling: str = "plain"
    encoding: str = "utf-8"
    url: str = ""
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path with query, headers and body of each."""

    def __enter__(self) -> EchoServer:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await self._ending.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        self.requests.append((request.raw_path, dict(request.headers), data))
        body = json.loads(data)
        asked = str(body.get("prompt") or body["messages"][-1]["content"])
        if "plain" in asked:
            return self._said(_completion(f"{_escaped(asked)} is answered."))
        key = SPELLINGS[self.spelling](self.secret)
        if self.place == "redirect":
            return self._said("", 307, Location=f"https://elsewhere.invalid/{quote(self.secret)}?k={self.secret}")
        if self.place == "reason":
            return web.Response(status=400, reason=f"bad key {self.secret}", body=_error("x").encode())
        if self.place == "header":
            named = {"x-request-id": self.secret, "retry-after": "0", "x-ratelimit-reset-requests": self.secret}
            return self._said(_error(f"no {key}"), 400, **named)
        return self._said(*_BODIES[self.place](key))

    def _said(self, text: str, status: int = 200, kind: str = "application/json", **headers: str) -> web.Response:
        data = text.encode(self.encoding)
        return web.Response(body=data, status=status, headers={"Content-Type": kind, **headers})


def _completion(text: str, finish: str = "stop", usage: str = "9", more: str = "", message: str = "") -> str:
    return (
        f'{{"id": "x", {more} "choices": [{{"index": 0, "finish_reason": "{finish}", "message": {{"role": "assistant", '
        f'{message} "content": "{text}"}}}}], "usage": {{"prompt_tokens": 9, "completion_tokens": {usage}}}}}'
    )


def _error(message: str, code: str = "bad") -> str:
    return f'{{"error": {{"message": "{message}", "type": "invalid_request_error", "code": "{code}"}}}}'


_PARTS = '"content": [{{"type": "text", "text": "{}"}}, {{"type": "text", "text": "{}"}}]'
_BODIES: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "answer": lambda key: (_completion(f"the key is {key}, they say"),),
    "beside": lambda key: (_completion("fine", more=f'"debug": {{"headers": ["Bearer {key}"]}},'),),
    "name": lambda key: (_completion("fine", more=f'"{key}": 1,'),),
    "twice": lambda key: (_completion("fine", more=f'"debug": "{key}", "debug": "nothing",'),),
    "parts": lambda key: (_completion("").replace('"content": ""', _PARTS.format(key, "rest")),),
    "finish": lambda key: (_completion("fine", finish=key),),
    "usage": lambda key: (_completion("fine", usage=f'"{key}"'),),
    "thought": lambda key: (_completion("fine", message=f'"reasoning_content": "{key}",'),),
    "error": lambda key: (_error(f"{'long ' * 25} key {key} is wrong"), 400),
    "error_inside": lambda key: (_error(f"key {key} is wrong"), 200),
    "code": lambda key: (_error("wrong", code=key), 400),
    "page": lambda key: (f"<html><title>{key}</title><a href='?{key}'>{'x' * 120}{key}</a></html>", 400, "text/html"),
    "stream": lambda key: (f'data: {_completion(key)}\n\ndata: "{key}"\n\ndata: [DONE]', 200, "text/event-stream"),
    "no_json": lambda key: (f'"{key}" and ["{key}"', 200),
    "cut": lambda key: (_completion(f"{key} {'x' * 4000}")[:-40], 200),
}
PLACES = ("redirect", "header", "reason", *_BODIES)
"""Where the secret stands in a response."""
