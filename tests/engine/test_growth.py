"""Growths: the same tasks at any concurrency, after any stop, and as the beginning of more."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from distill.engine import EngineStopped
from distill.engine.journal.store import Journal
from distill.engine.mock_server import (
    MockServer,
    asking,
    status,
)
from distill.engine.progress import PILOT, RunningMean
from distill.engine.providers.scripted import Line, Scripted
from distill.errors import (
    BudgetStop,
    EndpointError,
    Interrupted,
    StageIncomplete,
)
from distill.types import Completion, Flow, Request, Sampling, Task
from tests.support.engine.engines import ask, budget, engine, remote


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


class Pool:
    """A growth whose questions show the pool as it stood; every third proposal brings nothing, some bring three."""

    window = 5

    def __init__(self) -> None:
        self.pool: list[Task] = []
        self.log: list[str] = []

    def propose(self, k: int) -> Flow[list[Task]]:
        self.log.append(f"propose {k}")
        seen = len(self.pool)
        answer = yield ask(f"proposal {k} after {seen}", replica=k, sampling=Sampling(max_tokens=8))
        again = yield ask(f"more of {answer.text}", sampling=Sampling(max_tokens=8))
        return [Task(f"{k}.{n}", f"{again.text} #{n}") for n in range(0 if k % 3 == 2 else 1 + k % 4)]

    def admit(self, k: int, tasks: Sequence[Task]) -> list[Task]:
        self.log.append(f"admit {k}")
        self.pool += tasks
        return list(tasks)


def uneven() -> Scripted:
    return Scripted(lambda request: f"<{request.prompt}>", latency_seconds=lambda _: random.random() / 100)


@pytest.mark.slow
def test_a_growth_is_the_same_at_any_concurrency_and_latency(tmp_path: Path) -> None:
    grown = []
    for concurrency in (1, 3, 64):
        with Journal.open(tmp_path / f"{concurrency}.sqlite") as journal:
            grown.append(engine(journal, uneven(), concurrency=concurrency).grow(Pool(), 40))
    assert grown[0] == grown[1] == grown[2]
    assert len(grown[0].tasks) == 40


def test_a_larger_target_extends_the_same_tasks(journal: Journal) -> None:
    few = engine(journal, uneven()).grow(Pool(), 17).tasks
    lots = engine(journal, uneven()).grow(Pool(), 60).tasks
    assert (len(few), len(lots)) == (17, 60)
    assert lots[:17] == few


def test_proposals_begin_right_after_the_admission_a_window_before(journal: Journal) -> None:
    growth = Pool()
    engine(journal, uneven()).grow(growth, 12)
    start = [f"propose {k}" for k in range(5)]
    assert growth.log[:5] == start
    assert growth.log[5:11] == ["admit 0", "propose 5", "admit 1", "propose 6", "admit 2", "propose 7"]


class Unhurried(Pool):
    def admit(self, k: int, tasks: Sequence[Task]) -> list[Task]:
        time.sleep(0.01)  # time enough to commit an intent, for whoever would send
        return super().admit(k, tasks)


@pytest.mark.slow
@pytest.mark.parametrize("target", [1, 2, 7, 30])
def test_replaying_a_growth_asks_nothing(journal: Journal, target: int) -> None:
    before = engine(journal, uneven(), concurrency=1).grow(Pool(), target)
    provider = uneven()
    again = engine(journal, provider)
    assert again.grow(Unhurried(), target) == before
    assert (provider.requests, again.tally.asked) == ([], 0)


def test_a_growth_to_nothing_asks_nothing(journal: Journal) -> None:
    provider = uneven()
    assert engine(journal, provider).grow(Pool(), 0).tasks == []
    assert provider.requests == []


def test_a_growth_keeps_every_slot_busy(journal: Journal) -> None:
    with MockServer(latency_seconds=0.05) as server:
        engine(journal, remote(server), concurrency=4).grow(Pool(), 20)
    assert server.most_in_flight == 4


class Barren(Pool):
    def __init__(self, candidates: int) -> None:
        super().__init__()
        self.candidates = candidates

    def propose(self, k: int) -> Flow[list[Task]]:
        answer = yield ask("again", replica=k)
        return [Task("t", answer.text)] * self.candidates if isinstance(answer, Completion) else []

    def admit(self, k: int, tasks: Sequence[Task]) -> list[Task]:
        return []


@pytest.mark.parametrize(("candidates", "found"), [(0, "no candidates"), (2, "78 candidates, all refused")])
def test_a_growth_that_brings_nothing_new_stops_and_says_so(journal: Journal, candidates: int, found: str) -> None:
    with pytest.raises(StageIncomplete, match=f"0 of 9 tasks after 39 proposals: the last 39 .*{found}.*more seeds"):
        engine(journal).grow(Barren(candidates), 9)


def test_a_failure_that_may_pass_stops_a_growth_and_the_next_run_goes_on(journal: Journal) -> None:
    with MockServer(fault=asking("proposal 6 ", status(503))) as server, pytest.raises(StageIncomplete) as caught:
        engine(journal, remote(server), attempts=2).grow(Pool(), 20)
    assert isinstance(caught.value, EngineStopped)
    assert "was not answered in 2 attempts (http_503: HTTP 503" in str(caught.value)
    grown = caught.value.growth
    assert grown is not None
    assert grown.requests == 6
    with MockServer() as server:
        whole = engine(journal, remote(server)).grow(Pool(), 20).tasks
    assert whole[: len(grown.tasks)] == grown.tasks
    assert len(whole) == 20


def test_a_growth_that_runs_out_of_money_brings_what_it_has_and_goes_on_with_more(journal: Journal) -> None:
    with pytest.raises(EngineStopped) as caught:
        engine(journal, uneven(), budget=budget(0.1)).grow(Pool(), 20)
    assert isinstance(caught.value, BudgetStop)
    assert caught.value.growth is not None
    some = caught.value.growth.tasks
    assert 0 < len(some) < 20
    assert engine(journal, uneven()).grow(Pool(), 20).tasks[: len(some)] == some


def test_ctrl_c_in_a_growth_brings_what_it_has_and_the_next_run_goes_on(journal: Journal) -> None:
    def script(request: Request) -> Line:
        if "more of <proposal 7 " in str(request.prompt):
            signal.raise_signal(signal.SIGINT)
        return f"<{request.prompt}>"

    with pytest.raises(Interrupted, match="of 20 are finished and kept") as caught:
        engine(journal, Scripted(script, latency_seconds=0.005)).grow(Pool(), 20)
    assert isinstance(caught.value, EngineStopped)
    assert caught.value.growth is not None
    some = caught.value.growth.tasks
    assert 0 < len(some) < 20
    assert engine(journal, uneven()).grow(Pool(), 20).tasks[: len(some)] == some


def test_permanent_failures_alike_end_a_growth_with_their_words(journal: Journal) -> None:
    server = MockServer(fault=lambda number, body: status(400))
    with server, pytest.raises(EndpointError, match=r"first 20 requests .* failed alike: HTTP 400: this is a 400"):
        engine(journal, remote(server)).grow(Barren(1), 9)


def test_a_proposal_that_raises_is_empty_and_remembered(journal: Journal) -> None:
    class Fragile(Pool):
        def propose(self, k: int) -> Flow[list[Task]]:
            answer = yield ask("again", replica=k)
            return [Task(str(10 // (k - 2)), answer.text)]

    grown = engine(journal).grow(Fragile(), 5)
    assert (len(grown.tasks), grown.requests, grown.candidates) == (5, 6, 5)
    assert grown.errors == ("ZeroDivisionError: integer division or modulo by zero",)


class Surplus(Pool):
    """Every proposal brings two tasks at once; from proposal 18 on, its answer takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.provider = Scripted(
            lambda request: f"<{request.prompt}>", latency_seconds=lambda of: seconds if of.replica >= 18 else 0.0
        )

    def propose(self, k: int) -> Flow[list[Task]]:
        answer = yield ask("more", replica=k, sampling=Sampling(max_tokens=8))
        return [Task(f"{k}.{n}", answer.text) for n in range(2)]


def test_what_no_task_needs_is_given_up_at_a_server_of_ours(journal: Journal) -> None:
    growth = Surplus(60.0)
    growth.provider.is_ours = True
    began = time.monotonic()
    grown = engine(journal, growth.provider).grow(growth, 36)
    assert time.monotonic() - began < 5
    assert [(cost.outcome, cost.sends) for cost in journal.costs()] == [("kept", 18)]
    assert len(growth.provider.requests) > 18
    growth.provider.is_ours = False
    assert engine(journal, growth.provider).grow(Surplus(0.0), 36) == grown


def test_what_no_task_needs_is_awaited_and_announced_where_it_is_paid_for(journal: Journal) -> None:
    growth, said = Surplus(0.05), list[str]()
    engine(journal, growth.provider, say=said.append, stage="expand", budget=budget(None)).grow(growth, 36)
    [cost] = journal.costs()
    assert said == [f"expand: 36 of 36 tasks; waiting for {cost.sends - 18} answers that are paid for"]
    assert (cost.outcome, 2 <= cost.sends - 18 <= 4) == ("kept", True)


def test_after_twenty_requests_a_growth_says_what_it_takes_and_sends_no_more(journal: Journal) -> None:
    growth, said = Surplus(0.0), list[str]()
    engine(journal, growth.provider, say=said.append, stage="expand").grow(growth, 60)
    assert said == [
        "expand: after 20 requests: 2.0 tasks and 1 answer tokens each; 30 to 34 requests for 60 tasks,"
        " 30 to 34 answer tokens in all"
    ]
    assert len(growth.provider.requests) == 30


def test_the_requests_that_a_growth_needs_are_in_their_range() -> None:
    held = 0
    for seed in range(200):
        rng = random.Random(seed)
        brought = [sum(rng.random() < 0.3 for _ in range(6)) for _ in range(400)]
        first = RunningMean()
        for value in brought[:PILOT]:
            first.add(value)
        rest = 100 - sum(brought[:PILOT])
        needed = next(n for n in range(400) if sum(brought[PILOT : PILOT + n]) >= rest)
        low, high = first.needed(rest)
        held += low <= needed <= (high or 0)
    assert held >= 180  # 95% nominal
