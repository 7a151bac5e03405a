"""What `distill serve` takes: JSON bodies, prompts that fit, OpenAI's clients and curl."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.models.student_server import EVIL, FRIEND, KEY, QUESTION, Server, serving
from tests.support.tiny import save_tiny_model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On 127.0.0.1, for anyone here and for the pages of one origin."""
    with serving(tiny, tmp_path_factory.mktemp("logs") / "log", "--allow-origin", FRIEND) as one:
        yield one


@pytest.fixture(scope="module")
def guarded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On every address, with a key."""
    log = tmp_path_factory.mktemp("logs") / "log"
    with serving(tiny, log, "--host", "0.0.0.0", "--api-key-env", "SERVER_KEY", key=KEY) as one:
        yield one
    assert KEY not in log.read_text()


# --- Content-Type and bodies


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON;charset=UTF-8", 200),
        ("text/plain", 415),
        ("text/plain; application/json", 415),
        ("application/json, text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=a", 415),
        ("application/jsonp", 415),
        ("", 415),
        (None, 415),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_a_body_that_is_not_declared_as_json_is_refused(server: Server, path: str, given: str | None, status: int):
    headers = [("Host", "localhost"), *([] if given is None else [("Content-Type", given)])]
    body = QUESTION if path == "/v1/completions" else b'{"messages": [{"role": "user", "content": "a"}]}'
    assert server.raw("POST", path, headers, body)[0] == status


@pytest.mark.parametrize(
    "body", [b"no gzip", gzip.compress(QUESTION), gzip.compress(QUESTION)[:12]], ids=["plain", "whole", "cut"]
)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "none"])
def test_a_compressed_body_is_refused_without_a_traceback(tiny: Path, server: Server, body: bytes, encoding: str):
    assert server.post(("Content-Encoding", encoding), body=body)[0] == 415
    assert server.post(("Content-Encoding", "identity"))[0] == 200


def test_the_log_has_no_line_of_refused_requests(tiny: Path, tmp_path: Path):
    with serving(tiny, tmp_path / "log") as one:
        assert one.post(("Content-Encoding", "gzip"))[0] == 415
        assert one.post(host="evil.example")[0] == 403
        assert b" 400 " in one.head("GET / HTTP/1.1\n\n")
        assert b" 400 " in one.head("\x16\x03\x01\n\n")
        chunks = "POST /v1/completions HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
        assert b" 400 " in one.head(chunks + "Transfer-Encoding: chunked\n\nzz\nhello")
        assert (tmp_path / "log").read_text().splitlines() == one.said


# --- long prompts


def _chat(*contents: str) -> bytes:
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents)]
    return json.dumps({"messages": turns, "max_tokens": 1}).encode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", json.dumps({"prompt": "a " * 1_950_000}).encode()),
        ("/v1/completions", json.dumps({"prompt": "#" * 3_900_000}).encode()),
        ("/v1/completions", json.dumps({"prompt": "<|im_end|>" * 390_000}).encode()),
        ("/v1/completions", json.dumps({"prompt": "\u4e00" * 640_000}).encode()),
        ("/v1/chat/completions", _chat("a " * 1_950_000)),
        ("/v1/chat/completions", _chat(*["a " * 1900] * 1001)),
        ("/v1/chat/completions", _chat(*["a"] * 90_001)),
        ("/tokenize", _chat("1" * 3_900_000).replace(b', "max_tokens": 1', b"")),
    ],
    ids=["words", "one-letter", "special", "cjk", "chat", "many-long-turns", "many-short-turns", "tokenize"],
)
def test_a_prompt_of_megabytes_is_refused_at_once(server: Server, path: str, body: bytes):
    headers = [("Host", "localhost"), ("Content-Type", "application/json")]
    started = time.monotonic()
    status, _, answer = server.raw("POST", path, headers, body)
    assert (status, time.monotonic() - started < 1.0) == (400, True), answer
    assert answer["error"]["code"] == "context_length_exceeded" or answer["error"]["param"] == "messages"


def test_others_are_served_while_prompts_of_megabytes_are_refused(server: Server):
    long = json.dumps({"prompt": "a " * 1_950_000}).encode()
    with ThreadPoolExecutor(4) as pool:
        refused = [pool.submit(server.post, body=long) for _ in range(8)]
        slowest, asked = 0.0, 0
        while not all(one.done() for one in refused):
            started = time.monotonic()
            assert server.post()[0] == 200
            slowest, asked = max(slowest, time.monotonic() - started), asked + 1
    assert {one.result()[0] for one in refused} == {400}
    assert asked >= 1
    assert slowest < 2.0


def test_a_prompt_that_fits_is_answered_however_many_characters_it_has(server: Server):
    status, _, body = server.post(body=json.dumps({"prompt": "#" * 64 * 500, "max_tokens": 1}).encode())
    assert (status, body["usage"]["prompt_tokens"]) == (200, 500)


# --- clients


def test_openai_clients_are_answered(server: Server, guarded: Server):
    from openai import AsyncOpenAI, AuthenticationError, OpenAI

    turns: Any = [{"role": "user", "content": "Hi"}]
    for one, key in ((server, "none"), (guarded, KEY)):
        where = {"base_url": f"http://localhost:{one.port}/v1", "api_key": key, "max_retries": 0}
        with OpenAI(**where) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
            chat = client.chat.completions.create(model="tiny", messages=turns, max_tokens=2)
            assert chat.usage is not None
            assert chat.usage.completion_tokens == 2
            assert (
                client.completions.create(model="tiny", prompt="a", max_tokens=2).choices[0].finish_reason == "length"
            )

        async def ask(where: dict[str, Any] = where) -> int:
            async with AsyncOpenAI(**where) as client:
                answer = await client.chat.completions.create(model="tiny", messages=turns, max_tokens=2)
                return len(answer.choices)

        assert asyncio.run(ask()) == 1
    with OpenAI(base_url=f"http://localhost:{guarded.port}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(AuthenticationError) as refused:
            client.models.list()
        assert refused.value.code == "invalid_api_key"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed; the tests above send the same bytes")
def test_curl_is_answered_as_the_readme_has_it_and_refused_as_a_page_would_ask(server: Server):
    def status(*options: str) -> str:
        address = f"http://localhost:{server.port}/v1/completions"
        command = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", "-d", QUESTION.decode(), *options, address]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    json_ = ("-H", "Content-Type: application/json")
    assert status(*json_) == "200"
    assert status() == "415"
    assert status(*json_, "-H", "Host: evil.example") == "403"
    assert status(*json_, "-H", f"Origin: {EVIL}") == "403"
