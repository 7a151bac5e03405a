"""Batches taken in by later runs: left open, cancelled, killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.engine import StoppedByEndpoint, StoppedByUser, StoppedShort
from distill.engine.batch.client import BatchJobs
from distill.engine.batch.runner import Passes, StoppedPending
from distill.engine.budget import spent_usd
from distill.engine.journal.store import Journal
from distill.engine.providers.openai import OpenAIProvider
from tests.support.engine import batch_child
from tests.support.engine.batch_server import BatchServer
from tests.support.engine.batching import (
    KEY,
    PRICES,
    answers,
    capped,
    flows,
    many,
    outcomes_of_sends,
    passes,
    values,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer(key=KEY) as opened:
        yield opened


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


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
    assert any("0/4 2 batches open, 0 of 4 requests done, submitted 0." in note for note in notes)
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


# --- kills


def kills(command: str, server: BatchServer, folder: Path) -> int:
    """How many kills tests/support/engine/batch_child.py survived."""
    line = [sys.executable, "-m", "tests.support.engine.batch_child", command, server.url, str(folder)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def more_on(prefix: str, number: int) -> list[str]:
    return [f"answer to more on answer to {prefix}-{n}" for n in range(number)]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_still_submits_no_question_twice(tmp_path: Path) -> None:
    with BatchServer(looks=2) as server:
        assert kills("again", server, tmp_path) > 10
        assert (tmp_path / "run.out").read_text() == f"{more_on('run', 3)} 0.090 0.000"
        assert set(server.submitted.values()) == {1}
