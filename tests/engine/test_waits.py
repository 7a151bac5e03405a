"""Waits that endpoints ask for: bounded, in words at every moment, and independent of the machine's clock."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from distill.core.console import Progress
from distill.engine.backpressure import SendOutcome
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.mock_server import Fault, MockServer, first, status
from distill.engine.providers.bounded_numbers import count_of, number_of
from distill.engine.providers.rate_limit_headers import RateLimitReport, RemainingQuota, report
from distill.engine.providers.scripted import Scripted
from distill.engine.rate_limits import Limiter, Rates
from distill.errors import EndpointError
from distill.types import Completion, Request, Sampling
from tests.support.engine.engines import ask, bound, engine, flows, many, remote, values


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


class Notes(Progress):
    """Keeps every note."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self.notes.append(note)


# --- bounds


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 10**400, "9" * 5000, "nan", True, None, [], {}, "", "1e999"])
def test_what_is_no_number_within_bounds_counts_as_not_reported(value: Any) -> None:
    assert number_of(value, most=1e9) is None
    assert count_of(value, most=10**9) is None


@pytest.mark.parametrize("reset", ["999999999", "90000h", "9" * 500, f"{'9' * 500}h", "2h", "7201"])
def test_a_reset_in_over_an_hour_ends_the_run_with_its_reason(journal: Journal, reset: str) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
    good = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}
    with (
        MockServer(fault=lambda number, body: status(200, headers, good)) as server,
        pytest.raises(EndpointError, match=r"asks to wait [\d.]+ hours \(requests left by the headers\)") as caught,
    ):
        engine(journal, remote(server), concurrency=2).run(many(20))
    assert 1 <= server.count <= 2
    assert journal.counts()["answers"] == server.count
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wait", ["7200", "9" * 500])
def test_a_retry_after_of_over_an_hour_ends_the_run_with_its_reason(journal: Journal, wait: str) -> None:
    with (
        MockServer(fault=lambda number, body: status(429, {"Retry-After": wait})) as server,
        pytest.raises(EndpointError, match=r"asks to wait [\d.]+ hours \(HTTP 429"),
    ):
        engine(journal, remote(server)).run(flows("q"))
    assert server.count == 1


def test_a_reset_within_the_hour_is_waited_for(journal: Journal) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "200ms"}
    with MockServer(fault=first(1, status(429, headers))) as server:
        assert values(engine(journal, remote(server)).run(flows("q"))) == ["answer to q"]
    assert server.times[1] - server.times[0] >= 0.2


def test_an_answer_far_longer_than_what_was_asked_is_cut_off_and_marked(journal: Journal) -> None:
    def flow() -> Any:
        answer = yield ask("q", sampling=Sampling(max_tokens=10))
        assert isinstance(answer, Completion)
        return len(answer.text.encode()), answer.finish

    with MockServer(answer=lambda body: "é" * 1_000_000) as server:
        assert values(engine(journal, remote(server)).run([("one", flow)])) == [(160, "length")]


# --- who waits says for what


def notes_while(journal: Journal, fault: Any, seconds: float, **options: Any) -> list[str]:
    """The notes of a run that is stopped after so long."""
    progress = Notes()
    with MockServer(fault=fault) as server:
        driven = Engine(journal, bound(teacher=remote(server, timeout_seconds=1.8)), progress=progress, **options)
        timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(Exception, match="interrupted"):
            driven.run(many(30))
        timer.join()
    return progress.notes


def test_a_wait_for_a_limit_is_named_while_nothing_is_in_flight(journal: Journal) -> None:
    def fault(number: int, body: dict[str, Any]) -> Fault:
        return status(429, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"})

    notes = notes_while(journal, fault, 1.4, concurrency=4)
    assert any("waiting 2" in note and "(requests left by the headers)" in note for note in notes)


def test_an_endpoint_that_is_down_is_named_while_requests_wait_to_be_sent_again(journal: Journal) -> None:
    notes = notes_while(journal, lambda number, body: status(503), 1.4, concurrency=4, first_wait_seconds=20)
    assert any("8 to be sent again" in note and "HTTP 503" in note for note in notes)


def test_a_silent_endpoint_is_named(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.engine.progress.SILENT_SECONDS", 0.5)
    notes = notes_while(journal, lambda number, body: Fault("hang"), 1.4, concurrency=4)
    assert any("4 in flight" in note and "no answer for" in note for note in notes)


def test_an_open_circuit_breaker_is_named() -> None:
    async def work() -> list[str]:
        gate = Limiter(Rates(concurrency=200), breaker_seconds=5.0)
        for out in [await gate.enter(1) for _ in range(60)]:
            gate.leave(out, SendOutcome.FAULT)
        waiting = [asyncio.ensure_future(gate.enter(1)) for _ in range(10)]
        await asyncio.sleep(0)
        lines = [gate.describe()]
        gate.breaker.until = 0.0
        gate._pump()
        lines.append(gate.describe())
        gate.close()
        await asyncio.gather(*waiting, return_exceptions=True)
        return lines

    assert asyncio.run(work()) == ["waiting 5 s (errors)", "waiting for a trial request (errors)"]


# --- clocks


def test_a_reset_by_the_clock_is_counted_from_the_endpoints_own_clock() -> None:
    then = "Wed, 21 Oct 2015 07:28:00 GMT"
    headers = CIMultiDict(
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1445412540", "Date": then}
    )
    assert report(headers) == RateLimitReport(requests=RemainingQuota(0, 60.0))


JUMPING = """
import time
real, jumps = time.time, [0]
def jumped():
    jumps[0] += 1
    return real() + (-1) ** jumps[0] * 10 ** (jumps[0] % 10)
time.time = jumped
import sys
from pathlib import Path
from distill.core import console
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.mock_server import MockServer, RateLimits, faults
from distill.engine.policy import BoundEndpoint
from distill.engine.providers.openai import OpenAIProvider
from distill.engine.rate_limits import Rates
from tests.support.engine.engines import many
limits = RateLimits(requests_per_minute=20, per_seconds=0.3)
with MockServer(limits=limits, fault=faults(0.2, retry_after_seconds=0)) as server:
    endpoint = BoundEndpoint(OpenAIProvider(server.url, "m", timeout_seconds=0.5), Rates(requests_per_minute=6000))
    with Journal.open(Path(sys.argv[1])) as journal, console.progress("x", 60) as bar:
        outcomes = Engine(journal, {"teacher": endpoint}, progress=bar, first_wait_seconds=0.01).run(many(60))
print(sum(str(outcome.value).startswith("answer") for outcome in outcomes))
"""


def test_a_clock_that_jumps_stalls_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", JUMPING, str(tmp_path / "journal.sqlite")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.stdout.strip() == "60", found.stderr
    assert time.monotonic() - began < 30


# --- signals


def test_after_ctrl_c_nothing_more_is_sent(journal: Journal) -> None:
    sent: list[float] = []
    stop = [math.inf]

    def script(request: Request) -> str:
        sent.append(time.monotonic())
        if len(sent) == 50:
            stop[0] = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
        return "answer"

    with pytest.raises(Exception, match="interrupted"):
        engine(journal, Scripted(script, latency_seconds=0.01), concurrency=16).run(many(2000))
    late = [at for at in sent if at > stop[0] + 0.05]
    assert late == []
    assert journal.counts()["answers"] == len(sent)


def test_a_server_that_turns_lists_where_objects_belong_ends_no_probe() -> None:
    from distill.engine import probe

    def odd(body: Any) -> dict[str, Any]:
        return {"choices": [{"message": {"content": "1 2 3"}, "finish_reason": "stop", "logprobs": [1]}]}

    with MockServer(answer=odd) as server:
        assert probe.probe(server.url, "m").verdict("logprobs") == "ignored"
