"""Drives a real headless Chromium through its DevTools protocol, and listens to its console."""

from __future__ import annotations

import asyncio
import base64
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-port=0",
    "--hide-scrollbars",
)
START_SECONDS = 60


def executable() -> str | None:
    """The path of an installed Chromium or Chrome, if any."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


class Tab:
    """One page; `complaints` collects console messages, uncaught errors and refused or attempted requests.

    `statuses` are those of all responses, also of those that the page may not look at.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._sent = 0
        self.statuses: list[int] = []
        self.complaints: list[str] = []

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result; events that arrive before it are noted."""
        self._sent += 1
        await self._socket.send_json({"id": self._sent, "method": method, "params": params})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), START_SECONDS)
            self._note(message)
            if message.get("id") == self._sent:
                assert "error" not in message, message
                return dict(message["result"])

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Page.javascriptDialogOpening":
                self.complaints.append(str(params))
            case "Log.entryAdded":
                self.complaints.append(str(params["entry"]))
            case "Network.responseReceivedExtraInfo":
                self.statuses.append(int(params["statusCode"]))
            case "Network.requestWillBeSent" if not params["request"]["url"].startswith("file:"):
                self.complaints.append(f"asked for {params['request']['url']}")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        reply = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    async def open(self, path: Path, *, width: int, dark: bool = False) -> None:
        """Open a file at a viewport so many CSS pixels wide, and wait until it has loaded."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.send("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])
        await self.visit(path.resolve().as_uri())

    async def visit(self, url: str) -> None:
        """Open an address, and wait until it has loaded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)
        done = f"location.href === '{url}' && document.readyState === 'complete'"
        while await self.evaluate(done) is not True:
            await asyncio.sleep(0.05)

    async def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = await self.send("Page.captureScreenshot", captureBeyondViewport=True)  # up to 16,384 pixels high
        path.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def tab(*flags: str) -> AsyncIterator[Tab]:
    """A fresh browser with an empty profile, gone at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            executable() or "chromium",
            *FLAGS,
            *flags,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                    pages = [page for page in await reply.json() if page["type"] == "page"]
                address = pages[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    yield Tab(socket)
                    await socket.send_json({"id": 0, "method": "Browser.close"})
        finally:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), 5)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _port(file: Path) -> int:
    async with asyncio.timeout(START_SECONDS):
        while True:
            if file.exists() and (lines := file.read_text().splitlines()):
                return int(lines[0])
            await asyncio.sleep(0.05)
