"""One HTTP policy for live, batch and doctor: no redirect is followed, bytes and time are bounded."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from distill.engine import probe
from distill.engine.batch.client import BatchJobs
from distill.engine.providers import ProviderError
from distill.engine.providers.openai import OpenAIProvider
from distill.errors import EndpointError
from distill.pipeline import doctor
from distill.types import Message, Request
from tests.core.test_secrets import run

KEY = "sk-only-for-the-first-host"
HELLO = Request(role="teacher", messages=(Message("user", "hello"),))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Server:
    """A server on loopback with one handler for everything; keeps paths and headers."""

    handler: Handler
    url: str = ""
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __enter__(self) -> Server:
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
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await self._ending.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.path, dict(request.headers)))
        return await self.handler(request)


async def _fine(request: web.Request) -> web.StreamResponse:
    return web.json_response({"id": "file-1", "data": []})


def redirecting(to: str, status: int = 307) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": to + request.path.removeprefix("/v1")})

    return handler


async def _endless(request: web.Request) -> web.StreamResponse:
    """1 GB in pieces of 1 MB, as fast as they are taken."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for _ in range(1000):
        await response.write(b" " * 2**20)
    return response


async def _dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def closing(provider: OpenAIProvider, work: Awaitable[object]) -> object:
    try:
        return await work
    finally:
        await provider.close()


def provider_at(url: str, **options: float) -> OpenAIProvider:
    return OpenAIProvider(url, "m", headers={"api-key": KEY}, **options)  # type: ignore[arg-type]


def jobs_at(url: str) -> BatchJobs:
    return BatchJobs(provider_at(url), first_wait_seconds=0.01)


async def _all_lines(jobs: BatchJobs) -> list[bytes]:
    return [line async for line in jobs.output("file-1")]


WAYS: dict[str, Callable[[BatchJobs], Awaitable[object]]] = {
    "live": lambda jobs: jobs._provider.send(HELLO),
    "upload": lambda jobs: jobs.upload("n", [b'{"custom_id": "a"}\n']),
    "create": lambda jobs: jobs.create("n", "file-1", "/v1/chat/completions"),
    "find": lambda jobs: jobs.find_batch("n"),
    "status": lambda jobs: jobs.status("batch-1"),
    "cancel": lambda jobs: jobs.cancel("batch-1"),
    "output": _all_lines,
}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_an_endpoint_follows_a_redirect(way: str, status: int) -> None:
    with Server(_fine) as elsewhere, Server(redirecting(elsewhere.url, status)) as server:
        jobs = jobs_at(server.url)
        with pytest.raises((ProviderError, EndpointError), match="put that address into base_url"):
            asyncio.run(closing(jobs._provider, WAYS[way](jobs)))
    assert elsewhere.seen == []
    assert server.seen[0][1]["api-key"] == KEY


def test_doctor_follows_no_redirect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    with Server(_fine) as elsewhere, Server(redirecting(elsewhere.url)) as server:
        assert not doctor.examine(server.url, api_key_env="THE_KEY")
    assert elsewhere.seen == []
    assert "answered 307 to GET /models" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_no_body_is_read_without_an_end(way: str) -> None:
    with Server(_endless) as server:
        jobs = jobs_at(server.url)
        with pytest.raises(ProviderError) as caught:
            asyncio.run(closing(jobs._provider, WAYS[way](jobs)))
    assert caught.value.reason == "too_large"


@pytest.mark.slow
def test_a_byte_now_and_then_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LISTING_SECONDS", 0.5)
    with Server(_dripping) as server:
        began = time.monotonic()
        with pytest.raises(ProviderError, match="no answer within"):
            asyncio.run(closing(one := provider_at(server.url, timeout_seconds=0.5), one.send(HELLO)))
        with pytest.raises(EndpointError, match="no answer within"):
            probe.probe(server.url, "m", timeout_seconds=0.5)
        assert not doctor.examine(server.url)
    assert time.monotonic() - began < 10


def test_a_batch_run_that_is_sent_elsewhere_ends_there(tmp_path: Path) -> None:
    (tmp_path / "tasks.txt").write_text("Name a fruit.\nName a tree.\n")
    with Server(_fine) as elsewhere, Server(redirecting(elsewhere.url)) as server:
        document = {
            "name": "sent",
            "teacher": {"model": "m", "base_url": server.url, "terms": "ours", "headers_env": {"api-key": "THE_KEY"}},
            "collect": {"tasks": "tasks.txt", "mode": "batch", "test": 0},
        }
        (tmp_path / "sent.yaml").write_text(yaml.safe_dump(document))
        said = run(tmp_path, KEY, [["run", str(tmp_path / "sent.yaml"), "--run-dir", str(tmp_path / "run")]]).decode()
    assert "put that address into base_url" in said
    assert elsewhere.seen == []
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["collect"]["status"] != "done"
