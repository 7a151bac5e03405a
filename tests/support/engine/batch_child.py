"""A run through batches that kills itself at a given step: before or after any call to the provider or any commit.

As a script it forks such runs from one process in which everything is loaded: `every URL FOLDER` kills one run after
another at step 1, 2, 3 … and finishes each; `again URL FOLDER` kills one run ever later until it finishes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from distill.engine import EngineStopped
from distill.engine.batch.client import BatchJobs, BatchStatus
from distill.engine.batch.runner import Passes
from distill.engine.budget import Budget, TokenPrice, spent_usd
from distill.engine.journal.records import Change
from distill.engine.journal.store import Journal
from distill.engine.providers.openai import OpenAIProvider
from distill.types import Completion, Endpoint, Flow, Message, Request, Sampling

PRICES = {"teacher": TokenPrice(input=1000.0, output=1000.0)}


class Steps:
    """Counts, and dies at one of them."""

    def __init__(self, die_at: int) -> None:
        self._left = die_at

    def step(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalJournal(Journal):
    """Dies before or after a commit."""

    steps = Steps(0)

    def commit(self, change: Change) -> asyncio.Future[int]:
        self.steps.step()
        done = super().commit(change)
        done.add_done_callback(lambda _: self.steps.step())
        return done


class MortalJobs(BatchJobs):
    """Dies before or after a call."""

    steps = Steps(0)

    async def upload(self, name: str, lines: Sequence[bytes]) -> str:
        self.steps.step()
        found = await super().upload(name, lines)
        self.steps.step()
        return found

    async def create(self, name: str, file_id: str, path: str) -> str:
        self.steps.step()
        found = await super().create(name, file_id, path)
        self.steps.step()
        return found

    async def status(self, batch_id: str) -> BatchStatus:
        self.steps.step()
        found = await super().status(batch_id)
        self.steps.step()
        return found

    async def output(self, file_id: str) -> AsyncGenerator[bytes, None]:
        self.steps.step()
        async for line in super().output(file_id):
            yield line
        self.steps.step()


def ask(prompt: str) -> Request:
    return Request(role="teacher", messages=(Message("user", prompt),), sampling=Sampling(max_tokens=5))


def two_steps(name: str) -> Flow[str]:
    """Asks, and asks about the answer."""
    first = yield ask(name)
    second = yield ask(f"more on {first.text if isinstance(first, Completion) else first.reason}")
    return second.text if isinstance(second, Completion) else second.reason


def flows(prefix: str, number: int) -> list[tuple[str, Callable[[], Flow[str]]]]:
    return [(f"{prefix}-{n}", lambda name=f"{prefix}-{n}": two_steps(name)) for n in range(number)]


def run(url: str, folder: Path, prefix: str, number: int, die_at: int = 0) -> None:
    """Finish or die; writes the values of what is finished to `out`."""
    steps = Steps(die_at)
    journal = MortalJournal.open(folder / f"{prefix}.sqlite")
    jobs = MortalJobs(OpenAIProvider(url, "m", endpoint=Endpoint(model="m")))
    journal.steps, jobs.steps = steps, steps
    budget = Budget(PRICES, cap_usd=100.0, spent_usd=spent_usd(journal.costs(), PRICES))
    passes = Passes(journal, {"teacher": jobs}, stage="collect", budget=budget, poll_seconds=0.01, requests_a_batch=2)
    try:
        outcomes = passes.run(flows(prefix, number))
    except EngineStopped as stop:
        (folder / f"{prefix}.out").write_text(f"{type(stop).__name__}: {stop}")
        return
    assert budget.in_flight == 0
    spent = budget.earlier_usd + budget.spent_usd
    (folder / f"{prefix}.out").write_text(
        f"{[outcome.value for outcome in outcomes]} {spent:.3f} {abs(budget.reserved_usd):.3f}"
    )
    journal.close()


def forked(*args: Any) -> int:
    """The exit code of a run in a process of its own; negative for the signal that ended it."""
    if (child := os.fork()) == 0:
        run(*args)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def every(url: str, folder: Path) -> int:
    """How many runs were killed, each at another step, and finished by another process."""
    for die_at in count(1):
        if forked(url, folder, f"run{die_at}", 2, die_at) == 0:
            return die_at - 1
        assert forked(url, folder, f"run{die_at}", 2) == 0
    raise AssertionError("count ended")


def again(url: str, folder: Path) -> int:
    """How often one run was killed, at ever later steps, until it finished."""
    for kills in count():
        if forked(url, folder, "run", 3, 1 + kills // 2) == 0:
            return kills
    raise AssertionError("count ended")


if __name__ == "__main__":
    command, url, folder = sys.argv[1:]
    run(url, Path(folder), "first", 1)
    sys.stdout.write(str({"every": every, "again": again}[command](url, Path(folder))))
