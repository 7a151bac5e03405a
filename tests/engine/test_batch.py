"""Batches: flows through a real HTTP server with files, batches, errors, expiry, kills and a cap."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from distill.engine import StoppedByEndpoint, StoppedShort
from distill.engine.batch.runner import StoppedPending
from distill.engine.journal.store import Journal
from distill.errors import RecipeError
from distill.types import Flow, Request, Sampling
from tests.support.engine import batch_child
from tests.support.engine.batch_server import BatchServer
from tests.support.engine.batching import (
    KEY,
    answers,
    ask,
    flows,
    many,
    one,
    outcomes_of_sends,
    passes,
    values,
)
from tests.support.engine.journal_rows import entries_of


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer(key=KEY) as opened:
        yield opened


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


# --- what comes back


@pytest.mark.slow
def test_every_flow_finishes_with_its_own_answer(journal: Journal, server: BatchServer) -> None:
    driven = passes(journal, server)
    assert values(driven.run(many(30))) == answers(30)
    assert len(server.jobs) == 1
    assert set(server.submitted.values()) == {1}
    assert (driven.tally.asked, driven.tally.replayed, driven.tally.failed) == (30, 0, 0)
    assert (driven.tally.prompt_tokens, driven.tally.completion_tokens) == (300, 150)
    assert outcomes_of_sends(journal) == ["kept"] * 30
    assert [batch.state for batch in journal.batches("collect")] == ["ingested"]


def test_a_finished_run_asks_nothing(journal: Journal, server: BatchServer) -> None:
    passes(journal, server).run(many(3))
    calls = server.calls.total()
    again = passes(journal, server)
    assert values(again.run(many(3))) == answers(3)
    assert (server.calls.total(), again.tally.replayed) == (calls, 3)


def test_a_flow_of_two_steps_takes_two_batches(journal: Journal, server: BatchServer) -> None:
    outcomes = passes(journal, server).run(batch_child.flows("a", 5))
    assert values(outcomes) == [f"answer to more on answer to a-{n}" for n in range(5)]
    assert [len(job.lines) for job in server.jobs.values()] == [5, 5]


def test_several_questions_at_once_go_into_one_batch(journal: Journal, server: BatchServer) -> None:
    def pair() -> Flow[list[str]]:
        both = yield ask("left"), ask("right")
        return [answer.text for answer in both]

    assert passes(journal, server).run([("a", pair)])[0].value == ["answer to left", "answer to right"]
    assert [len(job.lines) for job in server.jobs.values()] == [2]


def test_the_same_question_is_sent_once(journal: Journal, server: BatchServer) -> None:
    assert (
        values(passes(journal, server).run([("a", lambda: one("q")), ("b", lambda: one("q"))])) == ["answer to q"] * 2
    )
    assert server.submitted.total() == 1


def test_prompts_and_messages_go_into_batches_of_their_own(journal: Journal, server: BatchServer) -> None:
    def raw() -> Flow[str]:
        answer = yield Request(role="teacher", prompt="raw\u2028text", sampling=Sampling(max_tokens=5))
        return str(answer.text)

    assert values(passes(journal, server).run([("a", raw), *many(1)])) == ["answer to raw\u2028text", "answer to q0"]
    assert [job.row["endpoint"] for job in server.jobs.values()] == ["/v1/completions", "/v1/chat/completions"]


def test_batches_keep_within_the_limits(journal: Journal, server: BatchServer) -> None:
    server.most_requests, server.most_bytes = 4, 1300
    outcomes = passes(journal, server, requests_a_batch=4).run(many(10))
    assert values(outcomes) == answers(10)
    assert [len(job.lines) for job in server.jobs.values()] == [4, 4, 2]
    outcomes = passes(journal, server, bytes_a_batch=1300).run(flows(*(f"{n}" * 50 for n in range(10))))
    assert max(row["bytes"] for row, _ in server.files.values() if row["purpose"] == "batch") <= 1300
    assert set(server.submitted.values()) == {1}


def test_likelihoods_are_no_batch(journal: Journal, server: BatchServer) -> None:
    def likelihood() -> Flow[None]:
        yield Request(role="teacher", prompt="a", continuation="b", kind="likelihood")

    with pytest.raises(StoppedByEndpoint, match="cannot measure likelihoods"):
        passes(journal, server).run([("a", likelihood)])


def test_a_role_without_a_model_is_one_line(journal: Journal, server: BatchServer) -> None:
    def judge() -> Flow[None]:
        yield Request(role="judge", prompt="a")

    with pytest.raises(RecipeError, match='no model for the role "judge"'):
        passes(journal, server).run([("a", judge)])


def test_a_flow_that_asks_something_else_when_made_again_is_stopped(journal: Journal, server: BatchServer) -> None:
    shared = Random(7)
    with pytest.raises(StoppedShort, match="drawn asked something else when it was made again"):
        passes(journal, server).run([("drawn", lambda: one(f"q{shared.random()}"))])


# --- what fails


def test_a_permanent_failure_is_recorded_once_and_costs_its_own_row_only(journal: Journal, server: BatchServer) -> None:
    server.fails = lambda text, times: 400 if text == "q1" else None
    driven = passes(journal, server)
    assert values(driven.run(many(3))) == ["answer to q0", "failed: http_400", "answer to q2"]
    assert (driven.tally.failed, journal.counts()["failures"]) == (1, 1)
    assert sorted(map(str, outcomes_of_sends(journal))) == ["free", "kept", "kept"]
    assert values(passes(journal, server).run(many(3)))[1] == "failed: http_400"
    assert set(server.submitted.values()) == {1}
    server.fails = lambda text, times: None
    assert values(passes(journal, server, retry_failed=True).run(many(3))) == answers(3)
    assert sorted(server.submitted.values()) == [1, 1, 2]


def test_an_empty_answer_is_asked_again_by_retry_failed_and_once_a_run(journal: Journal, server: BatchServer) -> None:
    server.says = lambda text, times: "" if text == "q1" and times < 3 else f"answer to {text}"
    for options in ({}, {}, {"retry_failed": True}):
        driven = passes(journal, server, **options)
        assert values(driven.run(many(3))) == ["answer to q0", "", "answer to q2"]
    with Journal.open(journal.path) as opened:  # `recall` asks again once per opened journal
        assert values(passes(opened, server, retry_failed=True).run(many(3))) == answers(3)
    assert sorted(server.submitted.values()) == [1, 1, 3]


@pytest.mark.parametrize("status", [429, 500])
def test_a_failure_that_may_pass_is_asked_again(journal: Journal, server: BatchServer, status: int) -> None:
    server.fails = lambda text, times: status if text == "q1" and times < 3 else None
    driven = passes(journal, server)
    assert values(driven.run(many(3))) == answers(3)
    assert sorted(server.submitted.values()) == [1, 1, 3]
    assert (driven.tally.retried, driven.tally.failed) == (2, 0)


def test_a_failure_that_stays_is_given_up_and_asked_again_by_the_next_run(
    journal: Journal, server: BatchServer
) -> None:
    server.fails = lambda text, times: 500 if text == "q1" else None
    (outcome,) = passes(journal, server).run(flows("q1"))
    assert [(failure.reason, failure.transient, failure.attempts) for failure in outcome.failures] == [
        ("http_500", True, 3)
    ]
    assert server.submitted.total() == 3
    with pytest.raises(StoppedPending):
        passes(journal, server, wait=False).run(flows("q1"))
    server.fails = lambda text, times: None
    assert values(passes(journal, server).run(flows("q1"))) == ["answer to q1"]
    assert server.submitted.total() == 4


def test_an_expired_batch_keeps_what_it_finished(journal: Journal, server: BatchServer) -> None:
    server.expires_after = 4
    assert values(passes(journal, server).run(many(10))) == answers(10)
    assert [len(job.lines) for job in server.jobs.values()] == [10, 6, 2]
    assert set(server.answered.values()) == {1}
    assert outcomes_of_sends(journal).count("kept") == 10
    assert outcomes_of_sends(journal).count("free") == 8


def test_lines_that_are_missing_or_no_lines_are_asked_again(journal: Journal, server: BatchServer) -> None:
    whole = server._results
    broken: list[int] = []

    def results(kind: str, rows: Any) -> str:
        id = whole(kind, rows)
        if not broken:
            row, data = server.files[id]
            lines = data.split(b"\n")
            server.files[id] = row, b"\n".join([b"", b"no json", b"[]", b'{"custom_id": "another"}', *lines[2:]])
            broken.append(1)
        return id

    server._results = results  # type: ignore[method-assign]
    assert values(passes(journal, server).run(many(5))) == answers(5)
    assert [len(job.lines) for job in server.jobs.values()] == [5, 2]


def test_a_line_that_fails_validation_costs_its_own_row_only(journal: Journal, server: BatchServer) -> None:
    def refuse(lines: Any) -> list[dict[str, Any]]:
        wrong = [n for n, line in enumerate(lines, start=1) if line["body"]["messages"][0]["content"] == "q1"]
        return [{"code": "invalid_request", "line": line, "message": "no good"} for line in wrong]

    server.refuses = refuse
    outcomes = passes(journal, server).run(many(3))
    assert values(outcomes) == ["answer to q0", "failed: invalid_request", "answer to q2"]
    assert set(server.submitted.values()) == {1}


def test_a_batch_that_is_refused_stops_the_run_in_one_line(journal: Journal, server: BatchServer) -> None:
    server.refuses = lambda lines: [{"code": "model_not_supported", "message": "m has\nno batches"}]
    for _ in range(2):
        with pytest.raises(StoppedByEndpoint, match=r"refused a batch: model_not_supported: m has no batches$"):
            passes(journal, server).run(many(3))
    assert set(outcomes_of_sends(journal)) == {"free"}


def test_a_full_queue_is_met_with_smaller_batches_one_at_a_time(journal: Journal, server: BatchServer) -> None:
    code = "token_limit_exceeded"
    server.refuses = lambda lines: [{"code": code, "message": "Enqueued token limit reached"}] if len(lines) > 3 else []
    assert values(passes(journal, server).run(many(10))) == answers(10)
    sizes = [(len(job.lines), job.row["status"]) for job in server.jobs.values()]
    assert sizes[:2] == [(10, "failed"), (5, "failed")]
    assert [size for size, status in sizes if status == "completed"] == [2, 2, 2, 2, 2]
    assert set(server.submitted.values()) == {1}


# --- kills


def test_an_answer_is_cut_at_our_stop_string_in_a_batch_too(journal: Journal, server: BatchServer) -> None:
    def flow() -> Flow[str]:
        answer = yield ask("q0 and more", stop=(" and",))
        return str(answer.text)

    [outcome] = passes(journal, server).run([("x", flow)])
    [entry] = entries_of(journal)
    whole = entry.completion.raw["choices"][0]
    assert " and" in json.dumps(whole)
    assert outcome.value is not None
    assert " and" not in outcome.value
