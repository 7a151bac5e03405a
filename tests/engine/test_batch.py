"""Batches: flows through a real HTTP server with files, batches, errors, expiry, kills and a cap."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from distill.engine import Outcome, StoppedByBudget, StoppedByEndpoint, StoppedByUser, StoppedShort
from distill.engine.batch.client import BatchJobs
from distill.engine.batch.runner import Passes, StoppedPending
from distill.engine.budget import Budget, TokenPrice, spent_usd
from distill.engine.journal.store import Journal
from distill.engine.providers import ProviderError
from distill.engine.providers.openai import OpenAIProvider
from distill.errors import RecipeError
from distill.types import Completion, Endpoint, Flow, Message, Request, Sampling
from tests.support import batch_child
from tests.support.batch_server import BatchServer

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-a-secret-that-is-nowhere"
PRICES = {"teacher": TokenPrice(input=1000.0, output=1000.0)}
"""USD a million tokens: an answer of 10 and 5 tokens costs 0.015 USD."""


def ask(prompt: str, **options: Any) -> Request:
    sampling = Sampling(max_tokens=5, **options)
    return Request(role="teacher", messages=(Message("user", prompt),), sampling=sampling)


def one(prompt: str) -> Flow[str]:
    answer = yield ask(prompt)
    return answer.text if isinstance(answer, Completion) else f"failed: {answer.reason}"


def flows(*prompts: str) -> list[tuple[str, Callable[[], Flow[str]]]]:
    return [(prompt, lambda prompt=prompt: one(prompt)) for prompt in prompts]


def many(count: int) -> list[tuple[str, Callable[[], Flow[str]]]]:
    return flows(*(f"q{number}" for number in range(count)))


def answers(count: int) -> list[str]:
    return [f"answer to q{number}" for number in range(count)]


def values(outcomes: list[Outcome[str]]) -> list[str | None]:
    return [outcome.value for outcome in outcomes]


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer(key=KEY) as opened:
        yield opened


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


def jobs(server: BatchServer, key: str = KEY, **options: Any) -> BatchJobs:
    provider = OpenAIProvider(server.url, "m", endpoint=Endpoint(model="m"), api_key=key, **options)
    return BatchJobs(provider, first_wait_seconds=0.01)


def passes(journal: Journal, server: BatchServer, **options: Any) -> Passes:
    return Passes(journal, {"teacher": jobs(server)}, **{"stage": "collect", "poll_seconds": 0.01, **options})


def capped(journal: Journal, usd: float) -> Budget:
    return Budget(PRICES, cap_usd=usd, spent_usd=spent_usd(journal.costs(), PRICES))


def outcomes_of_sends(journal: Journal) -> list[str | None]:
    with sqlite3.connect(journal.path) as connection:
        return [outcome for (outcome,) in connection.execute("SELECT outcome FROM intents ORDER BY id")]


# --- what comes back


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


# --- the endpoint


def test_a_wrong_key_is_one_line_that_shows_no_key(journal: Journal, server: BatchServer, tmp_path: Path) -> None:
    wrong = "sk-a-wrong-key-of-mine"
    with pytest.raises(StoppedByEndpoint) as caught:
        Passes(journal, {"teacher": jobs(server, wrong)}, poll_seconds=0.01).run(many(3))
    line = str(caught.value)
    assert line.count("\n") == 0
    assert "HTTP 401" in line
    assert "check the key" in line
    assert wrong not in line
    assert server.calls.total() == 1
    assert values(passes(journal, server, stage="").run(many(3))) == answers(3)
    assert all(wrong.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_an_endpoint_without_batches_is_one_line(journal: Journal, server: BatchServer) -> None:
    server.url += "/nowhere"
    with pytest.raises(StoppedByEndpoint, match=r"does not know its files .*it may have no Batch API"):
        passes(journal, server).run(many(1))


def test_an_endpoint_that_is_not_there_is_one_line(journal: Journal, server: BatchServer) -> None:
    server.url = "http://127.0.0.1:9/v1"
    provider = jobs(server)
    provider._here().max_retries = 0
    with pytest.raises(StoppedByEndpoint, match="cannot reach its files"):
        Passes(journal, {"teacher": provider}).run(many(1))


def test_a_batch_of_another_account_is_one_line(journal: Journal, server: BatchServer) -> None:
    with pytest.raises(StoppedPending):
        passes(journal, server, wait=False).run(many(1))
    server.jobs.clear()
    with pytest.raises(StoppedByEndpoint, match=r"does not know batch batch_0 .*the account that submitted it"):
        passes(journal, server).run(many(1))


def test_the_key_is_in_no_file(journal: Journal, server: BatchServer, tmp_path: Path) -> None:
    passes(journal, server).run(flows("q1", f"say {KEY[:3]}"))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 0
    assert all(KEY.encode() not in file.read_bytes() for file in files)


def test_a_batch_that_was_begun_while_the_answer_broke_off_is_not_begun_again(
    journal: Journal, server: BatchServer
) -> None:
    server.breaks = ["create"]
    assert values(passes(journal, server).run(many(5))) == answers(5)
    assert len(server.jobs) == 1


def test_an_outage_while_waiting_is_sat_out(journal: Journal, server: BatchServer) -> None:
    server.looks, server.breaks = 3, ["retrieve"] * 2
    provider = jobs(server)
    provider._here().max_retries = 0
    assert values(Passes(journal, {"teacher": provider}, poll_seconds=0.01).run(many(5))) == answers(5)


class BrokenOnce(BatchJobs):
    """The second file that is asked for cannot be had at first."""

    asked = 0

    async def output(self, file_id: str) -> AsyncGenerator[bytes, None]:
        self.asked += 1
        if self.asked == 2:
            raise ProviderError("connection", "the connection broke", transient=True)
        async for line in super().output(file_id):
            yield line


def test_a_file_that_cannot_be_had_at_first_counts_nothing_twice(journal: Journal, server: BatchServer) -> None:
    server.mixed, server.expires_after = True, 6
    server.fails = lambda text, times: 400 if text < "q4" else None
    provider = BrokenOnce(OpenAIProvider(server.url, "m", endpoint=Endpoint(model="m"), api_key=KEY))
    budget = capped(journal, 10)
    driven = Passes(journal, {"teacher": provider}, stage="collect", budget=budget, poll_seconds=0.01)
    assert values(driven.run(many(8))) == ["failed: http_400"] * 4 + answers(8)[4:]
    assert (driven.tally.failed, driven.tally.prompt_tokens) == (4, 40)
    assert (budget.in_flight, budget.reserved_usd) == (0, pytest.approx(0))
    assert budget.spent_usd == pytest.approx(4 * 0.015)


# --- coming back


def test_without_waiting_a_run_submits_and_a_later_one_takes_in(journal: Journal, server: BatchServer) -> None:
    server.looks = 1
    work = batch_child.flows("a", 3)
    for done, stops in [(0, 2), (0, 2)]:
        for _ in range(stops):
            with pytest.raises(StoppedPending) as caught:
                passes(journal, server, wait=False).run(work)
            assert (caught.value.exit_code, len(caught.value.outcomes)) == (0, done)
            assert "1 batch open" in str(caught.value)
    assert values(passes(journal, server, wait=False).run(work)) == [
        f"answer to more on answer to a-{n}" for n in range(3)
    ]
    assert set(server.submitted.values()) == {1}
    assert len(server.jobs) == 2


def test_more_flows_join_while_a_batch_is_open(journal: Journal, server: BatchServer) -> None:
    server.looks = 2
    for count in (3, 5):
        with pytest.raises(StoppedPending):
            passes(journal, server, wait=False).run(many(count))
    assert [len(job.lines) for job in server.jobs.values()] == [3, 2]
    assert values(passes(journal, server).run(many(5))) == answers(5)


def test_answers_of_a_batch_are_kept_though_the_recipe_asks_something_else_now(
    journal: Journal, server: BatchServer
) -> None:
    with pytest.raises(StoppedPending):
        passes(journal, server, wait=False).run(many(3))
    passes(journal, server).run(flows("else"))
    assert values(passes(journal, server).run(many(3))) == answers(3)
    assert set(server.submitted.values()) == {1}


def elsewhere(journal: Journal, server: BatchServer, model: str = "m", key: str = KEY, **options: Any) -> Passes:
    """With the server's address in the identity."""
    provider = BatchJobs(OpenAIProvider(server.url, model, api_key=key))
    return Passes(journal, {"teacher": provider}, stage="collect", poll_seconds=0.01, **options)


def test_a_batch_at_an_address_that_nothing_names_any_more_is_left_alone(
    journal: Journal, server: BatchServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StoppedPending):
        elsewhere(journal, server, wait=False).run(many(2))
    with BatchServer() as other:
        assert values(elsewhere(journal, other).run(many(2))) == answers(2)
    assert f"batch batch_0 is still at {server.url}" in capsys.readouterr().err
    assert values(elsewhere(journal, server).run(many(2))) == answers(2)
    assert set(server.submitted.values()) == {1}


def test_a_batch_that_was_never_uploaded_is_dropped_where_the_model_is_another(
    journal: Journal, server: BatchServer
) -> None:
    with pytest.raises(StoppedByEndpoint):
        elsewhere(journal, server, key="sk-a-wrong-one").run(many(2))
    assert [batch.state for batch in journal.batches()] == ["prepared"]
    assert values(elsewhere(journal, server, model="other").run(many(2))) == answers(2)
    assert [batch.state for batch in journal.batches()] == ["ingested", "ingested"]
    assert outcomes_of_sends(journal) == ["free", "free", "kept", "kept"]


def test_progress_says_what_is_open(journal: Journal, server: BatchServer) -> None:
    server.looks, notes = 2, list[str]()

    class Noting:
        def update(self, done: float, total: float | None = None, note: str = "") -> None:
            notes.append(f"{done:.0f}/{total:.0f} {note}".strip())

    passes(journal, server, progress=Noting(), requests_a_batch=3).run(many(4))
    assert notes[0] == "0/4"
    assert "0/4 2 batches open, 0 of 4 requests done, submitted 0 min ago" in notes
    assert notes[-1] == "4/4"


def test_ctrl_c_leaves_the_batch_where_it_is(journal: Journal, server: BatchServer) -> None:
    server.looks = 1_000_000

    def interrupt() -> None:
        while server.calls["retrieve"] < 3:
            time.sleep(0.005)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(StoppedByUser, match="0 of 4 are finished and kept; 1 batch open") as caught:
        passes(journal, server).run(many(4))
    assert caught.value.exit_code == 130
    server.looks = 0
    assert values(passes(journal, server).run(many(4))) == answers(4)
    assert set(server.submitted.values()) == {1}


def test_cancelling_keeps_what_was_finished_and_frees_the_rest(journal: Journal, server: BatchServer) -> None:
    server.looks = 1_000_000
    with pytest.raises(StoppedPending):
        passes(journal, server, wait=False, budget=capped(journal, 10)).run(many(4))
    assert spent_usd(journal.costs(), PRICES) > 4 * 0.015
    budget = capped(journal, 10)
    assert passes(journal, server, budget=budget).cancel() == 1
    assert sorted(map(str, outcomes_of_sends(journal))) == ["free", "free", "kept", "kept"]
    assert spent_usd(journal.costs(), PRICES) == pytest.approx(2 * 0.015)
    assert budget.earlier_usd + budget.spent_usd == pytest.approx(2 * 0.015)
    assert passes(journal, server).cancel() == 0
    server.looks = 0
    assert values(passes(journal, server).run(many(4))) == answers(4)
    assert set(server.answered.values()) == {1}


def test_a_batch_that_someone_cancels_elsewhere_stops_the_run(journal: Journal, server: BatchServer) -> None:
    server.looks = 1_000_000

    def cancel() -> None:
        while server.calls["retrieve"] < 3:
            time.sleep(0.005)
        server.jobs["batch_0"].row["status"] = "cancelling"

    threading.Thread(target=cancel).start()
    with pytest.raises(StoppedShort, match="batch batch_0 was cancelled"):
        passes(journal, server).run(many(4))
    server.looks = 0
    assert values(passes(journal, server).run(many(4))) == answers(4)
    assert set(server.answered.values()) == {1}


# --- money


def test_the_cap_is_never_passed_and_the_money_left_bounds_a_batch(journal: Journal, server: BatchServer) -> None:
    most = capped(journal, 1).most("teacher", ask("q0")).usd
    assert most is not None
    cap = 3.001 * most
    with pytest.raises(StoppedByBudget, match="is used up") as caught:
        passes(journal, server, budget=capped(journal, cap)).run(many(40))
    sizes = [len(job.lines) for job in server.jobs.values()]
    assert sizes[0] == 3
    answered = server.answered.total()
    assert 3 < answered < 40
    assert answered * 0.015 <= cap < answered * 0.015 + most
    assert values(list(caught.value.outcomes)) == answers(answered)
    assert spent_usd(journal.costs(), PRICES) == pytest.approx(answered * 0.015)


def test_open_batches_of_an_earlier_run_count_at_most_until_they_are_over(
    journal: Journal, server: BatchServer
) -> None:
    most = capped(journal, 1).most("teacher", ask("q0")).usd
    assert most is not None
    server.looks = 1
    with pytest.raises(StoppedPending):
        passes(journal, server, wait=False, budget=capped(journal, 3.001 * most)).run(many(3))
    assert spent_usd(journal.costs(), PRICES) == pytest.approx(3 * most)
    with pytest.raises(StoppedPending):
        passes(journal, server, wait=False, budget=capped(journal, 3.5 * most)).run(many(4))
    assert server.submitted.total() == 3
    assert values(passes(journal, server, budget=capped(journal, 3.5 * most)).run(many(4))) == answers(4)


def test_a_cap_needs_a_bound_on_answers(journal: Journal, server: BatchServer) -> None:
    def unbounded() -> Flow[None]:
        yield Request(role="teacher", prompt="a")

    with pytest.raises(RecipeError, match=r"a budget needs sampling\.max_tokens"):
        passes(journal, server, budget=capped(journal, 1)).run([("a", unbounded)])


# --- kills


def kills(command: str, server: BatchServer, folder: Path) -> int:
    """How many kills tests/support/batch_child.py survived."""
    line = [sys.executable, "-m", "tests.support.batch_child", command, server.url, str(folder)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def more_on(prefix: str, number: int) -> list[str]:
    return [f"answer to more on answer to {prefix}-{n}" for n in range(number)]


def test_a_kill_at_any_step_submits_no_question_twice_and_loses_nothing(tmp_path: Path) -> None:
    with BatchServer() as server:
        died = kills("every", server, tmp_path)
        assert died > 25
        assert set(server.submitted.values()) == {1}
        assert set(server.answered.values()) == {1}
    for prefix in (f"run{die_at}" for die_at in range(1, died + 1)):
        assert (tmp_path / f"{prefix}.out").read_text() == f"{more_on(prefix, 2)} 0.060 0.000"
        with Journal.open(tmp_path / f"{prefix}.sqlite", read_only=True) as journal:
            assert spent_usd(journal.costs(), PRICES) == pytest.approx(0.06)
            assert journal.counts() == {"answers": 4, "failures": 0, "intents": 4}


def test_a_run_that_is_killed_again_and_again_still_submits_no_question_twice(tmp_path: Path) -> None:
    with BatchServer(looks=2) as server:
        assert kills("again", server, tmp_path) > 10
        assert (tmp_path / "run.out").read_text() == f"{more_on('run', 3)} 0.090 0.000"
        assert set(server.submitted.values()) == {1}


def test_an_answer_is_cut_at_our_stop_string_in_a_batch_too(journal: Journal, server: BatchServer) -> None:
    def flow() -> Flow[str]:
        answer = yield ask("q0 and more", stop=(" and",))
        return str(answer.text)

    [outcome] = passes(journal, server).run([("x", flow)])
    [entry] = journal.entries()
    whole = entry.completion.raw["choices"][0]
    assert " and" in json.dumps(whole)
    assert outcome.value is not None
    assert " and" not in outcome.value
