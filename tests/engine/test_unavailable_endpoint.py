"""Endpoints that serve nobody: the run stops soon, and keeps what was answered."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.engine import EngineStopped
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.mock_server import (
    MockServer,
    status,
)
from distill.engine.providers.openai import OpenAIProvider
from distill.engine.providers.scripted import Line, Scripted
from distill.errors import (
    EndpointError,
    ModelError,
    RunFolderError,
)
from distill.types import Flow, Request
from tests.support.engine.engines import ask, bound, engine, many, remote, values


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


@pytest.mark.parametrize("code", [401, 402, 403, 404])
def test_an_endpoint_that_refuses_everybody_stops_the_run_after_what_is_in_flight(journal: Journal, code: int) -> None:
    server = MockServer(fault=lambda number, body: status(code), latency_seconds=0.02)
    with server, pytest.raises(EndpointError, match=f"HTTP {code}") as caught:
        engine(journal, remote(server, api_key="sk-very-secret-0000"), concurrency=4).run(many(100))
    assert server.count <= 4
    assert "\n" not in str(caught.value)
    assert journal.counts()["failures"] == 0


def test_what_was_answered_before_the_stop_comes_along(journal: Journal) -> None:
    server = MockServer(fault=lambda number, body: status(401) if number >= 5 else None)
    with server, pytest.raises(EngineStopped) as caught:
        engine(journal, remote(server), concurrency=1).run(many(100))
    assert [outcome.id for outcome in caught.value.outcomes if not outcome.failures] == [f"q{n}" for n in range(5)]
    assert isinstance(caught.value, EndpointError)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.mark.slow
def test_a_server_that_is_not_there_stops_the_run_within_seconds(journal: Journal) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    started = time.monotonic()
    with pytest.raises(EndpointError, match=f"cannot connect to {url}.*check base_url"):
        Engine(journal, bound(teacher=OpenAIProvider(url, "m"))).run(many(100))
    assert 1 < time.monotonic() - started < 5
    assert journal.counts()["answers"] == 0


def test_a_server_that_is_a_moment_late_is_waited_for(journal: Journal) -> None:
    port = free_port()
    late = MockServer(port=port)
    timer = threading.Timer(0.3, late.__enter__)
    timer.start()
    provider = OpenAIProvider(f"http://127.0.0.1:{port}/v1", "m")
    assert values(Engine(journal, bound(teacher=provider)).run(many(3))) == [f"answer to q{n}" for n in range(3)]
    timer.join()
    late.__exit__()


def test_a_server_that_goes_away_is_a_failure_that_may_pass(journal: Journal) -> None:
    with MockServer() as server:
        provider = remote(server)

        def flow() -> Flow[str]:
            yield ask("a")
            server.__exit__()
            answer = yield ask("b")
            return f"{answer.reason} {answer.transient} {answer.attempts}"

        [outcome] = engine(journal, provider, attempts=5).run([("x", flow)])
    assert outcome.value == "refused True 5"


def test_an_endpoint_that_asks_for_a_day_stops_the_run(journal: Journal) -> None:
    server = MockServer(fault=lambda number, body: status(429, {"Retry-After": "86400"}))
    with server, pytest.raises(EndpointError, match=r"asks to wait 24\.0 hours"):
        engine(journal, remote(server), concurrency=2).run(many(50))
    assert server.count <= 2


def test_an_error_of_ours_from_a_provider_stops_the_run_as_it_is(journal: Journal) -> None:
    def script(request: Request) -> Line:
        raise ModelError("the weights are gone")

    with pytest.raises(ModelError, match="the weights are gone"):
        engine(journal, Scripted(script)).run(many(5))


def test_a_journal_that_cannot_be_written_stops_the_run_before_anything_is_sent(journal: Journal) -> None:
    provider = Scripted(lambda request: "a")
    with Journal.open(journal.path, read_only=True) as shut, pytest.raises(RunFolderError, match="for reading only"):
        engine(shut, provider).run(many(50))
    assert provider.requests == []
