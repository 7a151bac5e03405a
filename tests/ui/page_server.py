"""The page of `distill ui`, served in a thread beside the test, and a client that says what each header is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from distill.engine.mock_server.thread import LoopThread
from distill.models.server_access import bound
from distill.ui.chat import ChatDesk
from distill.ui.runs import RunsFolder
from distill.ui.server import HOST, Login, application


@dataclass
class Served:
    """A page that is served; `cookie` is that of the first browser once `enter` has been called."""

    port: int
    token: str
    cookie: str = ""
    headers: HTTPMessage | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def enter(self) -> Served:
        status, _ = self.ask(f"/?token={self.token}")
        assert status == 303
        assert self.headers is not None
        self.cookie = self.headers["Set-Cookie"].partition(";")[0]
        return self

    def ask(self, path: str, *, body: Any = None, **headers: str) -> tuple[int, str]:
        """Status and text; the headers of the answer are then in `headers`."""
        connection = HTTPConnection(HOST, self.port, timeout=20)
        sent = {"Cookie": self.cookie, **{name.replace("_", "-"): value for name, value in headers.items()}}
        data = None if body is None else json.dumps(body)
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        connection.request("GET" if body is None else "POST", path, data, sent)
        reply = connection.getresponse()
        text = reply.read().decode()
        self.headers = reply.headers
        connection.close()
        return reply.status, text

    def get(self, path: str, **query: Any) -> Any:
        status, text = self.ask(f"{path}?{urlencode(query)}")
        assert status == 200, text
        return json.loads(text)


@contextmanager
def serving(root: Path) -> Iterator[Served]:
    listener, desk = bound(HOST, 0), ChatDesk()
    port = listener.getsockname()[1]
    login = Login(port)
    runner: list[web.AppRunner] = []

    async def start() -> int:
        runner.append(web.AppRunner(application(RunsFolder(root), login, desk), access_log=None, shutdown_timeout=0.1))
        await runner[0].setup()
        await web.SockSite(runner[0], listener).start()
        return int(port)

    async def end() -> None:
        await runner[0].cleanup()
        await desk.close()

    thread = LoopThread(asyncio.new_event_loop())
    thread.start(start, end)
    try:
        yield Served(port, login.token)
    finally:
        thread.stop()
