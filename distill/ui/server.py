"""The HTTP server of `distill ui`: a page for one browser on this machine, and the JSON that it shows.

Nothing is answered without the cookie that the one-time token of the printed address becomes. Host and Origin are
checked as by `distill serve`. The page may load nothing from elsewhere and run no script but ours; a run's report is
shown in a sandbox of its own, as a stranger's page.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

import distill.report
from distill.core.console import Say
from distill.core.files import json_text
from distill.errors import DistillError, RunFolderError, one_line
from distill.models.server_access import AccessControl, AccessRefusal, Handler, bound
from distill.run.record import run_record
from distill.ui import detail, live, rows, runs
from distill.ui.chat import CLOSE_SECONDS, ChatDesk
from distill.ui.lines import LineIndex

HOST = "127.0.0.1"
LARGEST_BODY_BYTES = 1 << 20
LONGEST_LINE_CHARACTERS = 100_000
"""Of a line typed in the chat."""

FAULTS = (OSError, MemoryError, ImportError, RuntimeError)
"""What files that come and go, and models that do not fit, raise."""

_PAGE = Path(__file__).with_name("page")
_FILES = {
    "/": (_PAGE / "index.html", "text/html"),
    "/report.css": (Path(distill.report.__file__).with_name("page") / "page.css", "text/css"),
    "/ui.css": (_PAGE / "ui.css", "text/css"),
    "/icon.svg": (_PAGE / "icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (_PAGE / f"{name}.js", "text/javascript") for name in ("ui", "dom", "overview", "rows", "chat")},
}
"""All that is served by name: no path of a request is ever looked up on the disk."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; frame-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""The report's own policy is stricter; this one also holds for a file that somebody else has put in its place."""
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Login:
    """Lets in the first browser that brings the token, and after that only its cookie."""

    def __init__(self, port: int) -> None:
        self.token = secrets.token_urlsafe(32)
        self._cookie, self._secret = f"distill_ui_{port}", secrets.token_urlsafe(32)
        self._is_used = False

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request with the cookie, exchange the token for the cookie, or refuse."""
        is_known = _same(request.cookies.get(self._cookie, ""), self._secret)
        token = request.query.get("token") if request.path == "/" else None
        if token is None:
            return await handler(request) if is_known else _closed()
        if not is_known and (self._is_used or not _same(token, self.token)):
            return _closed()
        self._is_used = True
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(self._cookie, self._secret, httponly=True, samesite="Strict", path="/")
        return response


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode())


def _closed() -> web.Response:
    line = "403: open the address that `distill ui` printed; it lets in one browser, once. Type it again for another.\n"
    return web.Response(status=403, text=line)


class Page:
    """What the page asks for, by address."""

    def __init__(self, place: runs.RunsFolder, desk: ChatDesk) -> None:
        self._place = place
        self._desk = desk
        self._indexes: dict[Path, LineIndex] = {}

    def routes(self) -> list[web.RouteDef]:
        """The routes; everything but the chat only reads files."""
        return [
            *(web.get(path, _file(*of)) for path, of in _FILES.items()),
            web.get("/api/runs", _reading(lambda _: self._place.list(), lambda _: self._place.mark())),
            web.get("/api/run", _reading(self._run, lambda query: runs.mark(self._folder(query)))),
            web.get("/api/rows", _reading(self._rows)),
            web.get("/api/facets", _reading(self._facets)),
            web.get("/api/row", _reading(self._row)),
            web.get("/report", self._report),
            web.get("/api/chat", _reading(lambda query: self._desk.state(self._folder(query)))),
            web.post("/api/chat/open", self._open),
            web.post("/api/chat/close", self._close),
            web.post("/api/chat/ask", self._ask),
        ]

    def _folder(self, query: Mapping[str, str]) -> Path:
        return self._place.folder(query.get("run", ""))

    def _run(self, query: Mapping[str, str]) -> Any:
        return live.state(self._folder(query))

    def _rows(self, query: Mapping[str, str]) -> Any:
        path = runs.file_of(self._folder(query), query.get("file", ""))
        wanted = rows.Query(
            query.get("text", ""), query.get("verdict", ""), query.get("label", ""),
            _number(query, "shortest") or 0, _number(query, "longest"),
        )  # fmt: skip
        if wanted != rows.Query():
            return rows.search(path, wanted, _number(query, "at") or 0)
        index = self._indexes.setdefault(path, LineIndex(path))
        return rows.page(index, path, _number(query, "first") or 0)

    def _facets(self, query: Mapping[str, str]) -> Any:
        folder = self._folder(query)
        return rows.facets(runs.file_of(folder, query.get("file", "")), run_record(folder).counts("curate"))

    def _row(self, query: Mapping[str, str]) -> Any:
        return detail.detail(self._folder(query), query.get("file", ""), _number(query, "at") or 0)

    async def _report(self, request: web.Request) -> web.StreamResponse:
        path = await asyncio.to_thread(self._folder, request.query)
        if not live.is_own_file(path / "report.html"):
            raise AccessRefusal(404, "the run has no report yet")
        response = web.FileResponse(path / "report.html", headers={"Content-Security-Policy": _REPORT_POLICY})
        response.content_type = "text/html"
        return response

    async def _open(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        await self._desk.open(self._place.folder(str(body.get("run"))))
        return _json(self._desk.state(self._place.folder(str(body.get("run")))))

    async def _close(self, request: web.Request) -> web.StreamResponse:
        await self._desk.close()
        return _json({})

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        """A line of JSON per side, as each answers."""
        body = await _body(request)
        line, sides, system = body.get("line"), body.get("sides"), body.get("system", "")
        temperature = body.get("temperature", 0.7)
        if not (isinstance(line, str) and line.strip() and isinstance(system, str) and isinstance(sides, list)):
            raise AccessRefusal(400, "expected a line, a system message and sides")
        if (
            len(line) > LONGEST_LINE_CHARACTERS
            or not isinstance(temperature, (int, float))
            or not 0 <= temperature <= 5
        ):
            raise AccessRefusal(400, "the line is too long, or the temperature not from 0 to 5")
        answers = self._desk.answers(
            self._place.folder(str(body.get("run"))), line.strip(), sides=sides, system=system, temperature=temperature
        )
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            async for side, text in answers:
                await _write(response, {"side": side, "text": text})
        except FAULTS as error:  # of a model that does not fit into memory, say
            await _write(response, {"fault": _line(error)})
        return response


def _file(path: Path, content_type: str) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=path.read_bytes(), content_type=content_type, charset="utf-8")

    return handler


def _reading(
    read: Callable[[Mapping[str, str]], Any], marking: Callable[[Mapping[str, str]], str] | None = None
) -> Handler:
    """A handler that reads files in another thread; with a mark of what they are, 304 where the page has it already."""

    async def handler(request: web.Request) -> web.StreamResponse:
        mark = f'"{await asyncio.to_thread(marking, request.query)}"' if marking is not None else ""
        if mark and request.headers.get("If-None-Match") == mark:
            return web.Response(status=304, headers={"ETag": mark})
        return _json(await asyncio.to_thread(read, request.query), **({"ETag": mark} if mark else {}))

    return handler


async def _write(response: web.StreamResponse, value: Any) -> None:
    await response.write(f"{json_text(rows.shown(value))}\n".encode())


def _json(value: Any, **headers: str) -> web.Response:
    return web.Response(text=json_text(rows.shown(value)), content_type="application/json", headers=headers)


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise AccessRefusal(400, "the body is not JSON") from error
    if not isinstance(body, dict):
        raise AccessRefusal(400, "the body is no object")
    return body


@web.middleware
async def _in_one_line(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors that a user can meet, of files that come and go too, as one line."""
    try:
        return await handler(request)
    except DistillError as error:
        raise AccessRefusal(404 if isinstance(error, RunFolderError) else 409, str(error)) from error
    except FAULTS as error:
        raise AccessRefusal(500, _line(error)) from error


def _line(error: Exception) -> str:
    return one_line(str(error)) or type(error).__name__


async def _mark(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


def application(place: runs.RunsFolder, login: Login, desk: ChatDesk) -> web.Application:
    """The application, which checks every request before it does anything."""
    access = AccessControl(HOST, advice="")
    app = web.Application(client_max_size=LARGEST_BODY_BYTES, middlewares=[access.admit, login.admit, _in_one_line])
    app.on_response_prepare.append(_mark)
    app.add_routes(Page(place, desk).routes())
    return app


def serve(root: Path, *, port: int, say: Say, show: Callable[[str], object]) -> None:
    """Serve the page over the runs in a folder until Ctrl-C; `show` is given its address. `port` 0 takes a free one.

    Raises `RunFolderError` where there is no such folder, `ServerError` where the port is taken.
    """
    if not root.is_dir():
        raise RunFolderError(
            f"there is no folder {root}; name the one that holds the runs, or begin one: distill run quickstart"
        )
    listener = bound(HOST, port)
    desk, login = ChatDesk(), Login(listener.getsockname()[1])
    address = f"http://{HOST}:{listener.getsockname()[1]}/?token={login.token}"
    app = application(runs.RunsFolder(root.resolve()), login, desk)
    is_over = asyncio.run(_listen(app, listener, desk, lambda: show(address)))
    say("ui: ended")
    if not is_over:
        os._exit(0)  # a model is still being loaded or is answering


async def _listen(app: web.Application, listener: Any, desk: ChatDesk, begin: Callable[[], object]) -> bool:
    """Answer until a signal; returns whether the chat's models were released in time."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    begin()
    await stop.wait()
    await runner.cleanup()
    with suppress(TimeoutError):
        await asyncio.wait_for(desk.close(), CLOSE_SECONDS)
        return True
    return False
