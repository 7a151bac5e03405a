"""Failures and retries: what is transient is asked again, what is permanent once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.engine.journal.store import Journal
from distill.engine.mock_server import (
    EMPTY,
    HANG,
    HTML,
    RESET,
    TRUNCATED,
    Fault,
    MockServer,
    asking,
    first,
    status,
)
from distill.engine.providers import ProviderError
from distill.engine.providers.scripted import Line, Scripted
from distill.engine.retry import RetryPolicy
from distill.types import Flow, Request
from tests.support.engine.engines import ask, engine, flows, many, remote, values


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


@pytest.mark.parametrize("fault", [status(429), status(503), RESET, TRUNCATED, HTML, EMPTY, status(408)])
def test_what_may_pass_is_asked_again(journal: Journal, fault: Fault) -> None:
    with MockServer(fault=first(2, fault)) as server:
        driven = engine(journal, remote(server))
        assert values(driven.run(flows("q"))) == ["answer to q"]
    assert (server.count, driven.tally.asked, driven.tally.retried, driven.tally.failed) == (3, 1, 2, 0)


def test_a_server_that_hangs_is_asked_again_after_the_timeout(journal: Journal) -> None:
    with MockServer(fault=first(1, HANG)) as server:
        assert values(engine(journal, remote(server, timeout_seconds=0.2)).run(flows("q"))) == ["answer to q"]


def test_patience_ends_and_the_next_run_asks_again(journal: Journal) -> None:
    with MockServer(fault=first(4, status(503))) as server:
        [outcome] = engine(journal, remote(server), attempts=4).run(flows("q"))
        assert (outcome.value, server.count) == ("failed: http_503", 4)
        [failure] = outcome.failures
        assert (failure.transient, failure.attempts) == (True, 4)
        assert values(engine(journal, remote(server)).run(flows("q"))) == ["answer to q"]


def test_a_bad_request_is_sent_once_and_costs_no_other(journal: Journal) -> None:
    with MockServer(fault=asking("q7", status(400))) as server:
        outcomes = engine(journal, remote(server)).run(many(20))
        assert [outcome.value for outcome in outcomes if outcome.failures] == ["failed: http_400"]
        assert len([value for value in values(outcomes) if value.startswith("answer")]) == 19
        assert server.count == 20
        again = engine(journal, remote(server))
        assert again.run(many(20)) == outcomes
        assert (server.count, again.tally.replayed, again.tally.failed) == (20, 20, 0)


def test_a_permanent_failure_is_asked_again_on_request_and_then_forgotten(journal: Journal) -> None:
    with MockServer(fault=first(1, status(422))) as server:
        assert values(engine(journal, remote(server)).run(flows("q"))) == ["failed: http_422"]
        assert values(engine(journal, remote(server), retry_failed=True).run(flows("q"))) == ["answer to q"]
        assert values(engine(journal, remote(server)).run(flows("q"))) == ["answer to q"]
    assert server.count == 2


def test_retry_failed_asks_a_question_once_a_run(journal: Journal) -> None:
    with MockServer(fault=first(9, status(400))) as server:
        engine(journal, remote(server), retry_failed=True, concurrency=1).run(flows("q", "q", "q"))
    assert server.count == 1


def test_retry_after_is_honoured(journal: Journal) -> None:
    with MockServer(fault=first(1, status(429, {"Retry-After": "1"}))) as server:
        engine(journal, remote(server)).run(flows("q"))
    assert server.times[1] - server.times[0] >= 1


def test_waiting_holds_no_slot(journal: Journal) -> None:
    with MockServer(fault=first(1, status(429, {"Retry-After": "1"}))) as server:
        engine(journal, remote(server), concurrency=1).run(flows("slow", "quick"))
    assert server.questions() == ["slow", "quick", "slow"]
    assert server.times[1] - server.times[0] < 0.9


def test_a_cut_answer_is_kept_and_bought_once(journal: Journal) -> None:
    with MockServer(finish="length") as server:

        def flow() -> Flow[str]:
            answer = yield ask("q")
            return str(answer.finish)

        assert values(engine(journal, remote(server)).run([("x", flow)])) == ["length"]
    assert server.count == 1


def test_a_fault_of_the_provider_costs_one_request_and_is_not_remembered(journal: Journal) -> None:
    def script(request: Request) -> Line:
        return f"{1 / (len(provider.requests) > 1 or request.prompt != 'q0')}"

    provider = Scripted(script)
    outcomes = engine(journal, provider, concurrency=1).run(many(3))
    assert values(outcomes) == ["failed: error", "1.0", "1.0"]
    assert (outcomes[0].failures[0].detail, len(provider.requests)) == ("ZeroDivisionError: division by zero", 3)
    assert values(engine(journal, provider).run(many(1))) == ["1.0"]


@given(attempt=st.integers(1, 9), asked=st.none() | st.floats(0, 100))
def test_waits_grow_within_their_bounds_and_never_undercut_the_endpoint(attempt: int, asked: float | None) -> None:
    patience = RetryPolicy(attempts=9, first_wait_seconds=1, longest_wait_seconds=60)
    wait = patience.wait_seconds(attempt, ProviderError("http_429", "", transient=True, retry_after=asked))
    usual = min(2.0 ** (attempt - 1), 60)
    assert max(usual / 2, asked or 0) <= wait <= max(usual, 1.1 * (asked or 0)) + 1e-9
    assert patience.is_over(attempt) == (attempt == 9)


def test_the_key_never_reaches_the_journal(journal: Journal) -> None:
    secret = "sk-very-secret-0000"

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        return status(400, body={"error": {"message": f"not with {secret}"}}) if number == 1 else None

    with MockServer(fault=script, answer=lambda body: f"your key is {secret}") as server:
        outcomes = engine(journal, remote(server, api_key=secret), concurrency=1).run(many(3))
    assert values(outcomes) == ["your key is ***", "failed: http_400", "your key is ***"]
    written = b"".join(path.read_bytes() for path in journal.path.parent.iterdir())
    assert b"your key is ***" in written
    assert secret.encode() not in written
