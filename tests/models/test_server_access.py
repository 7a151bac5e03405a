"""Who may use `distill serve`: hosts, origins and keys; real servers with a tiny model, asked by sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from tests.support.cli import here
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
def test_an_origin_or_key_that_cannot_be_one_is_one_line_before_anything_is_loaded(tmp_path: Path, options: list[str]):
    keys = {"EMPTY": "", "BLANK": " \n", "UMLAUT": "schl\xfcssel-0123"}
    finished = here(tmp_path, "serve", "no-model", "--port", "0", *options, **keys)
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert options[0] in finished.stderr
    assert "schl" not in finished.stderr


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
    assert KEY not in " ".join(psutil.Process(guarded.process.pid).cmdline())
    assert guarded.post(("Authorization", f"bearer {KEY}"))[0] == 200


def test_listening_beyond_loopback_without_a_key_warns_and_says_how_to_set_one(
    tiny: Path, tmp_path: Path, guarded: Server
):
    with serving(tiny, tmp_path / "log", "--host", "0.0.0.0") as one:
        assert "warning" in one.said[0]
        assert "--api-key-env NAME" in one.said[0]
    assert "warning" not in "\n".join(guarded.said)
