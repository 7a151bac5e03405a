"""Who may use `distill serve`: real servers with a tiny model, asked by sockets, curl and OpenAI's clients."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.tiny import save_tiny_model

pytestmark = pytest.mark.model

KEY = "sk-a+key/of=ours, 0123456789"
QUESTION = b'{"prompt": "a", "max_tokens": 1}'
EVIL = "http://evil.example"
FRIEND = "http://friend.example:3000"


@dataclass(frozen=True)
class Server:
    """A running `distill serve`, and what it said before it listened."""

    port: int
    pid: int
    said: list[str]

    def raw(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes = b"") -> tuple[int, Any, Any]:
        """Status, headers and JSON of a request with exactly these headers, and Content-Length."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, response.headers, json.loads(data) if data[:1] == b"{" else data

    def post(self, *headers: tuple[str, str], body: bytes = QUESTION, host: str | None = None) -> tuple[int, Any, Any]:
        """The same of a short question, with a Host and a Content-Type."""
        given = [("Host", host or f"127.0.0.1:{self.port}"), ("Content-Type", "application/json"), *headers]
        return self.raw("POST", "/v1/completions", given, body)

    def head(self, text: str) -> bytes:
        """The status line after raw bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(text.replace("\n", "\r\n").encode("latin-1"))
            return connection.recv(65536).split(b"\r\n")[0]


@contextmanager
def serving(model: Path, log: Path, *options: str, key: str | None = None) -> Iterator[Server]:
    command = [sys.executable, "-m", "distill", "serve", str(model), "--port", "0", *options]
    environment = os.environ | ({"SERVER_KEY": key} if key is not None else {})
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        while "listening" not in (said := log.read_text()):
            assert process.poll() is None, said
            time.sleep(0.05)
        lines = said.splitlines()
        port = int(lines[-1].rpartition(":")[2].removesuffix("/v1"))
        yield Server(port, process.pid, lines)
    finally:
        process.terminate()
        process.wait(20)


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


# --- Host


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:1", "127.0.0.1", "127.8.9.10:65535", "[::1]", "[::1]:8000", "[::FFFF:127.0.0.1]"]
)
def test_loopback_names_are_answered_with_any_port(server: Server, host: str):
    assert server.post(host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "localhost.", "a.localhost", "127.0.0.1.nip.io",
        "localhost:8000@evil", "evil@localhost", "localhost:", "localhost:x", "localhost:8000:8000", "localhost/",
        "::1:80", "[::1", "[::1%lo]", "[fe80::1%25eth0]", "[localhost]", "0.0.0.0", "[::]", "10.0.0.1", "2130706433",
        "127.1", "0x7f.0.0.1", "localhost, evil.example", "l\xf6calhost", "localhost\t8000",
    ],
)  # fmt: skip
def test_any_other_host_is_refused(server: Server, host: str):
    status, _, body = server.post(host=host)
    assert (status, body["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "request_", ["GET /v1/models HTTP/1.0\n\n", "GET /v1/models HTTP/1.0\nHost:\n\n", "GET / HTTP/1.1\nHost: \n\n"]
)
def test_no_host_is_refused(server: Server, request_: str):
    assert b" 403 " in server.head(request_)


@pytest.mark.parametrize(
    "request_",
    [
        "GET /v1/models HTTP/1.1\n\n",
        "GET /v1/models HTTP/1.1\nHost: localhost\nHost: evil.example\n\n",
        "GET /v1/models HTTP/1.1\nHost: localhost\n Host: evil.example\n\n",
        "GET http://evil.example/v1/models HTTP/1.1\nHost: localhost\n\n",
        "CONNECT evil.example:80 HTTP/1.1\nHost: localhost\n\n",
    ],
)
def test_what_no_client_sends_is_a_bad_request(server: Server, request_: str):
    assert b" 400 " in server.head(request_)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/completions", "/tokenize", "/nothing"])
def test_host_and_origin_are_looked_at_on_every_method_and_path(server: Server, method: str, path: str):
    assert server.raw(method, path, [("Host", "evil.example")])[0] == 403
    assert server.raw(method, path, [("Host", "localhost"), ("Origin", EVIL)])[0] == 403


def test_every_address_has_the_name_that_was_connected_to_and_no_dns_name(guarded: Server):
    bearer = ("Authorization", f"Bearer {KEY}")
    assert guarded.post(bearer, host=f"0.0.0.0:{guarded.port}")[0] == 200
    assert guarded.post(bearer, host="localhost")[0] == 200
    assert guarded.post(bearer, host=socket.gethostname() + ".evil.example")[0] == 403
    assert guarded.post(bearer, host="192.0.2.7")[0] == 403
    for address in _own_addresses():
        connection = HTTPConnection(address, guarded.port, timeout=60)
        connection.request(
            "POST", "/v1/completions", QUESTION, {"Content-Type": "application/json", bearer[0]: bearer[1]}
        )
        assert connection.getresponse().status == 200
        connection.close()


def _own_addresses() -> list[str]:
    """IPv4 addresses of this machine that are not loopback."""
    every = [one for found in psutil.net_if_addrs().values() for one in found if one.family == socket.AF_INET]
    return [one.address for one in every if not one.address.startswith("127.")]


# --- Origin


@pytest.mark.parametrize(
    "origin",
    [EVIL, "null", "", "http://localhost", "http://localhost:3000", "https://localhost:PORT", "http://localhost:PORT/",
     "http://localhost:PORT.evil.example", "http://localhost:PORT@evil.example", "file://", "*", FRIEND + "0",
     FRIEND.replace("http", "https")],
)  # fmt: skip
def test_a_page_of_another_origin_is_refused_and_may_not_read_why(server: Server, origin: str):
    given = origin.replace("PORT", str(server.port))
    status, headers, body = server.post(("Origin", given), host=f"localhost:{server.port}")
    assert (status, body["error"]["code"]) == (403, "origin_not_allowed")
    assert "Access-Control-Allow-Origin" not in headers


def test_a_page_of_our_own_origin_is_answered(server: Server):
    own = f"http://localhost:{server.port}"
    assert server.post(("Origin", own), ("Sec-Fetch-Site", "same-origin"), host=own[7:])[0] == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_a_foreign_page_loads_without_an_origin_is_refused(server: Server, site: str):
    headers = [("Host", "localhost"), ("Sec-Fetch-Site", site)]
    assert server.raw("GET", "/v1/models", headers)[0] == 403
    assert server.raw("GET", "/v1/models", [("Host", "localhost"), ("Sec-Fetch-Site", "none")])[0] == 200


def test_a_page_of_an_allowed_origin_may_ask_and_read_errors_too(server: Server):
    for body, status in ((QUESTION, 200), (b"{", 400)):
        found, headers, _ = server.post(("Origin", FRIEND), ("Sec-Fetch-Site", "cross-site"), body=body)
        assert (found, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (status, FRIEND, "Origin")


def test_a_preflight_is_answered_for_an_allowed_origin_alone_and_needs_no_key(
    server: Server, tiny: Path, tmp_path: Path
):
    asks = [
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,content-type,x-stainless-os"),
    ]
    options = ("--allow-origin", "HTTP://Friend.example:3000/", "--allow-origin", EVIL, "--api-key-env", "SERVER_KEY")
    with serving(tiny, tmp_path / "log", *options, key=KEY) as keyed:
        for one, origin in ((server, FRIEND), (keyed, FRIEND), (keyed, EVIL)):
            preflight = [("Host", "localhost"), ("Origin", origin), *asks]
            status, headers, body = one.raw("OPTIONS", "/v1/chat/completions", preflight)
            assert (status, body, headers["Access-Control-Allow-Origin"]) == (204, b"", origin)
            assert headers["Access-Control-Allow-Headers"] == asks[1][1]
            assert "POST" in headers["Access-Control-Allow-Methods"]
        assert keyed.post(("Origin", FRIEND))[0] == 401
    status, headers, _ = server.raw("OPTIONS", "/v1/chat/completions", [("Host", "localhost"), ("Origin", EVIL), *asks])
    assert (status, headers["Access-Control-Allow-Origin"]) == (403, None)


@pytest.mark.parametrize(
    "options",
    [
        ["--allow-origin", "*"], ["--allow-origin", "null"], ["--allow-origin", "friend.example"],
        ["--allow-origin", "http://a.example/page"], ["--allow-origin", "http://u:p@a.example"],
        ["--allow-origin", "http://*.a.example"], ["--api-key-env", "NOT_SET"], ["--api-key-env", "EMPTY"],
        ["--api-key-env", "BLANK"], ["--api-key-env", "UMLAUT"],
    ],
)  # fmt: skip
def test_an_origin_or_key_that_cannot_be_one_is_one_line_before_anything_is_loaded(tiny: Path, options: list[str]):
    command = [sys.executable, "-m", "distill", "serve", str(tiny), "--port", "0", *options]
    environment = os.environ | {"EMPTY": "", "BLANK": " \n", "UMLAUT": "schl\xfcssel-0123"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert options[0] in finished.stderr
    assert "schl" not in finished.stderr


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
    assert asked >= 3
    assert slowest < 2.0


def test_a_prompt_that_fits_is_answered_however_many_characters_it_has(server: Server):
    status, _, body = server.post(body=json.dumps({"prompt": "#" * 64 * 500, "max_tokens": 1}).encode())
    assert (status, body["usage"]["prompt_tokens"]) == (200, 500)


# --- the key


@pytest.mark.parametrize(
    "given",
    ["", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer  x{KEY}",
     f"Bearer {KEY}, Bearer {KEY}", "Bearer \xff\xfe", f"Bearer {KEY.upper()}"],
)  # fmt: skip
def test_a_wrong_key_is_refused_in_the_shape_of_the_api(guarded: Server, given: str):
    status, headers, body = guarded.post(*([("Authorization", given)] if given else []))
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    error = body["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert KEY not in json.dumps(body)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/tokenize"), ("GET", "/nothing")])
def test_every_path_but_health_asks_for_the_key(guarded: Server, method: str, path: str):
    assert guarded.raw(method, path, [("Host", "localhost")])[0] == 401
    assert guarded.raw("GET", "/health", [("Host", "localhost")])[0] == 200


def test_the_key_is_in_no_command_line(guarded: Server):
    assert KEY not in " ".join(psutil.Process(guarded.pid).cmdline())
    assert guarded.post(("Authorization", f"bearer {KEY}"))[0] == 200


def test_listening_beyond_loopback_without_a_key_warns_and_says_how_to_set_one(
    tiny: Path, tmp_path: Path, guarded: Server
):
    with serving(tiny, tmp_path / "log", "--host", "0.0.0.0") as one:
        assert "warning" in one.said[0]
        assert "--api-key-env NAME" in one.said[0]
    assert "warning" not in "\n".join(guarded.said)


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
