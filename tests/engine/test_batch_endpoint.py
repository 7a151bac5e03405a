"""Endpoints of batches that fail, and the money that a batch may cost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from distill.engine import StoppedByBudget, StoppedByEndpoint
from distill.engine.batch.client import BatchJobs
from distill.engine.batch.runner import Passes, StoppedPending
from distill.engine.budget import spent_usd
from distill.engine.journal.store import Journal
from distill.engine.providers import ProviderError
from distill.engine.providers.openai import OpenAIProvider
from distill.errors import RecipeError
from distill.types import Endpoint, Flow, Request
from tests.support.engine.batch_server import BatchServer
from tests.support.engine.batching import (
    KEY,
    PRICES,
    answers,
    ask,
    capped,
    flows,
    jobs,
    many,
    passes,
    values,
)


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer(key=KEY) as opened:
        yield opened


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


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


def test_a_line_that_is_refused_fails_alone_and_is_asked_again(journal: Journal, server: BatchServer) -> None:
    server.fails = lambda text, times: 403 if text == "q2" and times == 1 else None
    assert values(passes(journal, server).run(many(4))) == [
        "answer to q0",
        "answer to q1",
        "failed: http_403",
        *answers(4)[3:],
    ]
    assert values(passes(journal, server).run(many(4))) == answers(4)


def test_lines_that_are_all_refused_stop_the_run(journal: Journal, server: BatchServer) -> None:
    server.fails = lambda text, times: 401 if times == 1 else None
    with pytest.raises(StoppedByEndpoint, match=r"HTTP 401.*check the key"):
        passes(journal, server).run(many(4))
    assert values(passes(journal, server).run(many(4))) == answers(4)


def test_an_endpoint_without_batches_is_one_line(journal: Journal, server: BatchServer) -> None:
    server.url += "/nowhere"
    with pytest.raises(StoppedByEndpoint, match=r"does not know its files .*it may have no Batch API"):
        passes(journal, server).run(many(1))


def test_an_endpoint_that_is_not_there_is_one_line(journal: Journal, server: BatchServer) -> None:
    server.url = "http://127.0.0.1:9/v1"
    provider = jobs(server, attempts=1)
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
    provider = jobs(server, attempts=1)
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


# --- money


@pytest.mark.slow
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
