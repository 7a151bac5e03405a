"""`distill serve` and the pages of other origins, in a real browser: none makes it generate, none reads an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.browser.chromium import Tab, tab
from tests.support.models.student_server import Server, serving
from tests.support.tiny import save_tiny_model

pytestmark = pytest.mark.model

BODY = json.dumps({"prompt": "a", "max_tokens": 2})
REBOUND = "--host-resolver-rules=MAP evil.example 127.0.0.1"
"""What an attacker's DNS server does: the page's own name now means this machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of another server, with an empty page."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text("<!doctype html><title>page</title><link rel=icon href=data:,>")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def server(model: Path, page: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Open to the page that is called localhost, not to the same by another name."""
    log = tmp_path_factory.mktemp("logs") / "log"
    with serving(model, log, "--allow-origin", f"http://localhost:{page}") as one:
        yield one


def fetched(url: str, address: str, *, flags: tuple[str, ...] = (), **options: Any) -> tuple[str, list[int]]:
    """What a page reads when it fetches from an address, and the statuses of all responses."""
    code = f"""fetch({json.dumps(address)}, {json.dumps(options)})
        .then(async (answer) => `${{answer.type}} ${{await answer.text()}}`, (error) => `nothing: ${{error}}`)"""

    async def ask(one: Tab) -> tuple[str, list[int]]:
        await one.visit(url)
        one.statuses.clear()
        read = await one.evaluate(code)
        await one.evaluate("new Promise((done) => setTimeout(done, 300))")
        return str(read), one.statuses

    return _in_browser(ask, *flags)


def _in_browser(act: Callable[[Tab], Any], *flags: str) -> Any:
    async def run() -> Any:
        async with tab(*flags) as one:
            return await act(one)

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_page_of_another_origin_cannot_make_it_generate(server: Server, page: int, kind: str):
    options = {"mode": "no-cors", "method": "POST", "headers": {"Content-Type": kind}, "body": BODY}
    address = f"http://127.0.0.1:{server.port}/v1/completions"
    read, statuses = fetched(f"http://127.0.0.1:{page}/", address, **options)
    assert (read, statuses) == ("opaque ", [403])


def test_a_page_of_another_origin_is_not_even_let_ask_for_json(server: Server, page: int):
    options = {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": BODY}
    address = f"http://127.0.0.1:{server.port}/v1/completions"
    read, statuses = fetched(f"http://127.0.0.1:{page}/", address, **options)
    assert read.startswith("nothing")
    assert set(statuses) == {403}


def test_a_page_whose_name_was_pointed_here_reads_no_answer(server: Server):
    own = f"http://evil.example:{server.port}"
    options = {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": BODY}
    read, statuses = fetched(f"{own}/health", f"{own}/v1/completions", flags=(REBOUND,), **options)
    assert set(statuses) == {403}
    assert "host_not_allowed" in read
    assert "choices" not in read


def test_an_image_or_a_form_of_another_page_is_refused(server: Server, page: int):
    async def load(one: Tab) -> list[int]:
        await one.visit(f"http://127.0.0.1:{page}/")
        one.statuses.clear()
        await one.evaluate(
            f"""new Promise((done) => {{
                const image = new Image(); image.onload = image.onerror = done;
                image.src = "http://localhost:{server.port}/v1/models" }})"""
        )
        address = f"http://localhost:{server.port}/v1/completions"
        await one.evaluate(
            f"""document.body.innerHTML = `<form method=post enctype=text/plain target=f action="{address}">
                <input name='{{"prompt": "a", "user": "' value='"}}'></form><iframe name=f></iframe>`;
            new Promise((done) => {{ frames.f.frameElement.onload = done; document.forms[0].submit() }})"""
        )
        return one.statuses

    assert _in_browser(load) == [403, 403]


def test_a_page_of_an_allowed_origin_asks_and_reads(server: Server, page: int):
    options = {
        "method": "POST",
        "headers": {"Content-Type": "application/json", "Authorization": "Bearer none", "X-Stainless-OS": "Unknown"},
        "body": BODY,
    }
    address = f"http://127.0.0.1:{server.port}/v1/completions"
    read, statuses = fetched(f"http://localhost:{page}/", address, **options)
    assert read.startswith('cors {"id": "cmpl-')
    assert statuses == [204, 200]


def test_a_chat_page_of_an_allowed_origin_reads_a_stream(server: Server, page: int):
    body = json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "stream": True})
    options = {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": body}
    read, statuses = fetched(
        f"http://localhost:{page}/", f"http://127.0.0.1:{server.port}/v1/chat/completions", **options
    )
    assert read.startswith('cors data: {"id": "chatcmpl-')
    assert read.endswith("data: [DONE]\n\n")
    assert statuses == [204, 200]
