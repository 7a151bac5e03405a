"""The server that misbehaves on demand: each of its ways over real HTTP, its limits, its counters, its command."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from distill.engine.mock_server import (
    BAD_REQUEST,
    EMPTY,
    FAULTS,
    HANG,
    HTML,
    NO_MODEL,
    RESET,
    SLOW_DRIP,
    TRUNCATED,
    UNAUTHORISED,
    Fault,
    MockServer,
    RateLimits,
    drip,
    faults,
    first,
    header_duration,
    some,
    status,
)
from tests.benchmarks.fast_server import FastServer

ROOT = Path(__file__).resolve().parents[2]
BODY: dict[str, Any] = {}


@dataclass
class Said:
    """A response, read whole."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def content(self) -> str:
        return json.loads(self.text)["choices"][0]["message"]["content"]


def connect(url: str, timeout: float = 5) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)


def say(connection: http.client.HTTPConnection, text: str = "q", **more: Any) -> Said:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return Said(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode())


def ask(url: str, text: str = "q", *, timeout: float = 5, **more: Any) -> Said:
    with closing(connect(url, timeout)) as connection:
        return say(connection, text, **more)


def stats(url: str) -> dict[str, Any]:
    with closing(connect(url)) as connection:
        connection.request("GET", "/stats")
        return json.loads(connection.getresponse().read())


# --- faults


def test_a_drip_is_slow_and_whole() -> None:
    with MockServer(fault=first(1, drip(0.2)), answer=lambda body: "ä" * 300) as server:
        started = time.monotonic()
        assert ask(server.url).content == "ä" * 300
        assert 0.19 <= time.monotonic() - started < 2
    assert (server.answered, server.times_answered("q")) == (1, 1)


def test_a_drip_comes_in_many_pieces() -> None:
    with MockServer(fault=first(1, drip(0.2))) as server, closing(connect(server.url)) as connection:
        body = {"model": "m", "prompt": "q"}
        connection.request("POST", "/v1/completions", json.dumps(body))
        answer = connection.getresponse()
        pieces = []
        while piece := answer.read1():
            pieces.append(piece)
    assert len(pieces) >= 10
    assert json.loads(b"".join(pieces))["choices"][0]["text"] == "answer to q"


@pytest.mark.parametrize("fault", [RESET, TRUNCATED])
def test_a_broken_connection_is_no_answer(fault: Fault) -> None:
    with MockServer(fault=first(1, fault)) as server:
        with pytest.raises((ConnectionError, http.client.IncompleteRead)):
            ask(server.url)
        assert ask(server.url).content == "answer to q"
    assert (server.count, server.answered) == (2, 1)


def test_a_hang_ends_when_the_client_leaves() -> None:
    with MockServer(fault=first(1, HANG)) as server:
        with pytest.raises(TimeoutError):
            ask(server.url, timeout=0.1)
        wait_until(lambda: server.in_flight == 0)
    assert (server.count, server.answered, dict(server.statuses)) == (1, 0, {})


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (HTML, 200, "<html>"),
        (EMPTY, 200, '"choices": []'),
        (status(503), 503, "this is a 503"),
        (BAD_REQUEST, 400, "invalid_request_error"),
        (UNAUTHORISED, 401, "invalid_api_key"),
        (NO_MODEL, 404, "model_not_found"),
    ],
)
def test_a_bad_response_is_written_and_is_no_answer(fault: Fault, code: int, says: str) -> None:
    with MockServer(fault=first(1, fault)) as server:
        said = ask(server.url)
    assert (said.status, says in said.text) == (code, True)
    assert (server.answered, dict(server.statuses)) == (0, {code: 1})


def test_some_is_a_share_of_the_requests() -> None:
    script = some(0.2, UNAUTHORISED)
    assert 1900 < sum(script(number, BODY) is UNAUTHORISED for number in range(10_000)) < 2100


# --- faults


def kind(fault: Fault) -> str:
    told = " Retry-After" if "Retry-After" in fault.headers else ""
    return f"{fault.kind} {fault.code}{told}" if fault not in (HTML, EMPTY) else fault.body[:9]


def test_faults_fail_their_share_in_every_way_and_drip_besides() -> None:
    script = faults(0.3, seed=1, drip_seconds=0.5)
    drawn = Counter(kind(fault) for number in range(20_000) if (fault := script(number, BODY)))
    assert len(drawn) == len(FAULTS) + 3
    assert min(drawn.values()) > 300
    dripped = drawn.pop(kind(SLOW_DRIP))
    assert 0.015 < dripped / 20_000 < 0.03
    assert 0.29 < sum(drawn.values()) / 20_000 < 0.31


def test_faults_ask_few_to_wait() -> None:
    script = faults(1.0)
    drawn = [script(number, BODY) for number in range(10_000)]
    assert None not in drawn
    assert 300 < sum(fault.code == 429 for fault in drawn if fault) < 500


def test_faults_depend_on_the_number_and_the_seed_alone() -> None:
    def drawn(seed: int) -> list[Fault | None]:
        script = faults(0.5, seed=seed)
        return [script(number, BODY) for number in range(100)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


# --- limits


def test_requests_over_the_limit_are_refused_until_the_window_has_passed() -> None:
    limits = RateLimits(requests_per_minute=3, per_seconds=0.5)
    with MockServer(limits=limits) as server:
        said = [ask(server.url) for _ in range(5)]
        assert [one.status for one in said] == [200, 200, 200, 429, 429]
        assert said[-1].headers["retry-after"] == "1"
        error = json.loads(said[-1].text)["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        time.sleep(0.6)
        assert ask(server.url).status == 200
    assert (server.limited, server.answered, dict(server.statuses)) == (2, 4, {200: 4, 429: 2})


def test_every_response_says_what_is_left() -> None:
    limits = RateLimits(requests_per_minute=2, tokens_per_minute=100)
    with MockServer(limits=limits, fault=first(1, status(500))) as server:
        said = [ask(server.url, "two words", max_tokens=30) for _ in range(3)]
    assert [one.status for one in said] == [500, 200, 429]
    assert [one.headers["x-ratelimit-limit-requests"] for one in said] == ["2", "2", "2"]
    assert [one.headers["x-ratelimit-remaining-requests"] for one in said] == ["1", "0", "0"]
    assert [one.headers["x-ratelimit-remaining-tokens"] for one in said] == ["68", "36", "36"]
    for one in said:
        assert re.fullmatch(r"1m0s|59\.\d+s", one.headers["x-ratelimit-reset-requests"])
        assert re.fullmatch(r"1m0s|59\.\d+s", one.headers["x-ratelimit-reset-tokens"])


def test_tokens_are_limited_too() -> None:
    with MockServer(limits=RateLimits(tokens_per_minute=100, per_seconds=0.4)) as server:
        said = [ask(server.url, max_tokens=49) for _ in range(3)]
        assert [one.status for one in said] == [200, 200, 429]
        assert "on tokens per min" in said[-1].text
        time.sleep(0.5)
        assert ask(server.url, max_tokens=49).status == 200


def test_a_request_larger_than_the_limit_is_not_told_to_wait() -> None:
    with MockServer(limits=RateLimits(tokens_per_minute=100)) as server:
        said = ask(server.url, max_tokens=1000)
    assert (said.status, "retry-after" in said.headers, "larger than the limit" in said.text) == (429, False, True)


def test_limits_may_be_silent() -> None:
    with MockServer(limits=RateLimits(requests_per_minute=1, headers=False, retry_after=False)) as server:
        said = [ask(server.url) for _ in range(2)]
    assert [one.status for one in said] == [200, 429]
    assert [name for one in said for name in one.headers if "ratelimit" in name or "retry" in name] == []


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (7.66, "7.66s"), (60, "1m0s"), (360, "6m0s"), (3600, "1h0m0s")],
)
def test_durations_are_written_as_rate_limit_headers_do(seconds: float, written: str) -> None:
    assert header_duration(seconds) == written


# --- counters


def test_answers_are_counted_by_question_and_in_all() -> None:
    with MockServer(latency_seconds=0.1) as server, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda text: ask(server.url, text), ["a", "a", "b", "c", "c", "c"]))
        assert stats(server.url) == server.stats()
    assert server.stats() == {
        "count": 6,
        "answered": 6,
        "distinct": 3,
        "most_answers": 3,
        "limited": 0,
        "statuses": {"200": 6},
        "in_flight": 0,
        "most_in_flight": 6,
    }
    assert (server.times_answered("b"), server.times_answered("d")) == (1, 0)


def test_an_answer_that_nobody_waits_for_is_not_counted() -> None:
    with MockServer(latency_seconds=0.3) as server:
        with pytest.raises(TimeoutError):
            ask(server.url, timeout=0.1)
        time.sleep(0.4)
    assert (server.count, server.answered) == (1, 0)


def test_a_server_that_keeps_nothing_still_counts() -> None:
    with MockServer(keep=False) as server:
        said = [ask(server.url).content for _ in range(3)]
    assert said == ["answer to q"] * 3
    assert (server.count, server.answered, server.times_answered("q")) == (3, 3, 3)
    assert (server.bodies, server.headers, server.paths, server.times) == ([], [], [], [])


def test_a_taken_port_is_an_error() -> None:
    with MockServer() as server:
        port = urlsplit(server.url).port or 0
        for second in (MockServer(port=port), FastServer(port=port)):
            with pytest.raises(OSError, match="address already in use"):
                second.__enter__()


# --- the fast server


def test_the_fast_server_answers_a_valid_completion_after_its_latency() -> None:
    from openai.types.chat import ChatCompletion

    with FastServer(latency_seconds=0.1) as server:
        started = time.monotonic()
        said = ask(server.url)
        assert time.monotonic() - started >= 0.1
    completion = ChatCompletion.model_validate_json(said.text, strict=True)
    assert completion.choices[0].message.content == "a short answer"
    assert completion.usage
    assert completion.usage.total_tokens == 11


def test_the_fast_server_reads_requests_however_they_are_cut() -> None:
    body = b'{"messages": []}'
    sent = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-LENGTH: %d\r\n\r\n%s" % (len(body), body)
    with FastServer() as server, closing(connect(server.url)) as connection:
        connection.connect()
        for cut in (sent[:30], sent[30:60], sent[60:] + sent):  # one in pieces, and one more behind it
            connection.sock.sendall(cut)
            time.sleep(0.02)
        wait_until(lambda: server.answered == 2)


def test_the_fast_server_keeps_connections_and_counts() -> None:
    with FastServer(latency_seconds=0.05) as server:

        def several(_: int) -> list[int]:
            with closing(connect(server.url)) as connection:
                return [say(connection).status for _ in range(3)]

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(several, range(4))) == [[200] * 3] * 4
        assert stats(server.url) == {"count": 12, "answered": 12, "most_in_flight": 4}


# --- the command


@contextmanager
def command(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The server in a process of its own: its address, which it prints first, and the process."""
    line = [sys.executable, "-m", "distill.engine.mock_server", "--latency", "0", *arguments]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


@pytest.mark.slow
def test_the_command_prints_its_address_first_and_its_counters_last() -> None:
    with command() as (url, process):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url)
        assert ask(url).status == 200
        assert stats(url)["answered"] == 1
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=5)
        assert (process.returncode, json.loads(out)["count"], out.count("\n")) == (0, 1, 1)


@pytest.mark.slow
def test_the_command_fails_and_limits_as_it_is_told() -> None:
    with command("--rpm", "3") as (url, _):
        assert [ask(url).status for _ in range(4)] == [200, 200, 200, 429]
    script = faults(1.0, seed=7)
    told = [number for number in range(20) if (fault := script(number, BODY)) and fault.kind == "status"]
    with command("--faults", "1", "--seed", "7") as (url, _):
        said = [attempt(url) for _ in range(20)]
    assert [number for number in range(20) if said[number]] == told


def attempt(url: str) -> int:
    """The status, or 0 where none came."""
    try:
        return ask(url, timeout=0.2).status
    except (OSError, http.client.HTTPException):
        return 0


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)
