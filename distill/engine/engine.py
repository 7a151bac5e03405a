"""Runs flows and growths: sends their requests, feeds answers back, and returns their results."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from distill.core import event_loop
from distill.core.console import Progress, Silent
from distill.engine import EngineStopped, GrowthResult, Outcome, StoppedByBudget, StoppedByUser, StoppedShort, Tally
from distill.engine.budget import Budget
from distill.engine.flows import Choose, FlowState, by_role
from distill.engine.journal.store import Journal
from distill.engine.policy import RequestPolicy, SenderStopping
from distill.engine.progress import ProgressReport
from distill.engine.providers import Provider
from distill.engine.rate_limits import Rates
from distill.engine.retry import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, RetryPolicy
from distill.engine.sender import RequestSender
from distill.errors import DistillError
from distill.types import Failure, Flow, Growth, Task

T = TypeVar("T")

ALIVE_A_SLOT = 2
"""Flows alive for each request that may be in flight: enough to fill every slot, few enough to hold in memory."""
COLLECT_EVERY = 50_000
"""New objects between two looks for cycles while requests are in flight; Python's own number is 700."""
BARREN_WINDOWS, BARREN_MORE = 3, 24
"""A growth stops after 3 · window + 24 proposals in a row that brought nothing new."""


class Engine:
    """Asks for flows: journal first, then the provider of each request's role, every answer committed before use.

    `providers` are by name: a request's role, unless `run` is told otherwise. `concurrency` bounds the requests in
    flight to an endpoint, `rates` may set that and a pace for each name, `attempts` the sends of one request. `stage`
    is written beside every answer. `retry_failed` asks again what failed for good in an earlier run. `budget` counts
    USD and may cap them. `hedge` sends a request again that takes so many times the 95th percentile, and takes the
    first answer.
    """

    def __init__(
        self,
        journal: Journal,
        providers: Mapping[str, Provider],
        *,
        concurrency: int = 32,
        attempts: int = 10,
        retry_failed: bool = False,
        progress: Progress | None = None,
        stage: str = "",
        budget: Budget | None = None,
        rates: Mapping[str, Rates] | None = None,
        hedge: float | None = None,
        first_wait_seconds: float = FIRST_WAIT_SECONDS,
        longest_wait_seconds: float = LONGEST_WAIT_SECONDS,
    ) -> None:
        self.tally = Tally()
        self._journal = journal
        self._providers = dict(providers)
        self._manners = RequestPolicy(
            concurrency=concurrency,
            patience=RetryPolicy(
                attempts=attempts, first_wait_seconds=first_wait_seconds, longest_wait_seconds=longest_wait_seconds
            ),
            retry_failed=retry_failed,
            stage=stage,
            rates=rates or {},
            hedge=hedge,
        )
        self._progress = progress or Silent()
        self._budget = budget or Budget({})
        self._budget.check(self._providers)

    def run(self, flows: Sequence[tuple[str, Callable[[], Flow[T]]]], *, choose: Choose = by_role) -> list[Outcome[T]]:
        """Drive every flow to its end; one outcome a flow, in input order.

        `choose` says which model answers a flow's role. Flows are made in order, as late as possible. Raises
        `EngineStopped` with the finished outcomes on Ctrl-C, at the end of the budget, or where an endpoint cannot
        serve; and any `DistillError` of a provider as it is.
        """
        outcomes: dict[int, Outcome[T]] = {}
        report = ProgressReport(self._progress, len(flows), self.tally)

        async def work(asker: RequestSender) -> None:
            admission = iter(enumerate(flows))
            workers = min(len(flows), ALIVE_A_SLOT * self._slots())
            await asyncio.gather(*(_worker(asker, admission, choose, outcomes, report) for _ in range(workers)))

        try:
            self._drive(work, report)
        except EngineStopped as stop:
            stop.outcomes = [outcomes[index] for index in sorted(outcomes)]
            raise
        return [outcomes[index] for index in range(len(flows))]

    def grow(self, growth: Growth, target: int) -> GrowthResult:
        """Grow until `target` tasks are admitted; the same tasks at any concurrency and latency.

        Raises `StoppedShort` where a transient failure outlives its retries, or where proposals stay without
        anything new; and what `run` raises. What was admitted so far is in the exception's `grown`.
        """
        report = ProgressReport(self._progress, target, self.tally)
        state = _Growing(growth, target, report)
        try:
            self._drive(state.work, report)
        except EngineStopped as stop:
            stop.grown = state.grown()
            raise
        return state.grown()

    def _slots(self) -> int:
        """Requests that may be in flight in all."""
        return sum(
            self._manners.rates.get(name, Rates()).concurrency or self._manners.concurrency for name in self._providers
        )

    def _drive(self, work: Callable[[RequestSender], Awaitable[None]], report: ProgressReport) -> None:
        try:
            with _fewer_collections():
                event_loop.run(self._with_asker(work, report))
        except KeyboardInterrupt:  # the second one: nobody waits for what is in flight
            raise StoppedByUser(_interrupted(report)) from None
        report.end()

    async def _with_asker(self, work: Callable[[RequestSender], Awaitable[None]], report: ProgressReport) -> None:
        """Run `work` in this loop until it ends and nothing is in flight; the first Ctrl-C stops it gently."""
        asker = RequestSender(
            self._journal,
            self._providers,
            manners=self._manners,
            budget=self._budget,
            tally=self.tally,
            on_change=report.tick,
        )
        report.asker = asker
        try:
            await _patiently(asyncio.ensure_future(_to_the_end(work, asker)), asker, report)
        finally:
            for provider in {id(provider): provider for provider in self._providers.values()}.values():
                await provider.close()
        if isinstance(asker.stopped, StoppedByUser):
            raise StoppedByUser(_interrupted(report))  # told at the end, when what was in flight is counted
        if asker.stopped is not None:
            raise asker.stopped


@contextmanager
def _fewer_collections() -> Iterator[None]:
    """Let Python look for cycles less often.

    Thousands of requests in flight survive each look, which costs a third of the CPU at 1,000 in flight and frees
    nothing.
    """
    before = gc.get_threshold()
    if before[0]:  # 0 means that somebody has turned it off
        gc.set_threshold(max(before[0], COLLECT_EVERY), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def _to_the_end(work: Callable[[RequestSender], Awaitable[None]], asker: RequestSender) -> None:
    try:
        with suppress(SenderStopping):
            await work(asker)
    finally:
        asker.stop(None)
        await asker.drain()


async def _patiently(work: asyncio.Future[None], asker: RequestSender, report: ProgressReport) -> None:
    """Wait for the work. `loops.run` turns the first Ctrl-C into a cancellation and the second into an exception."""
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        asker.stop(StoppedByUser())
        report.is_interrupted = True
        report.end()
        if (this := asyncio.current_task()) is not None:
            this.uncancel()
        await asyncio.wait([work])
    work.result()


def _interrupted(report: ProgressReport) -> str:
    return f"interrupted: {report.done} of {report.total} are finished and kept; run the same command again to go on"


async def _finish(steps: FlowState[T], asker: RequestSender) -> Outcome[T]:
    """Take a flow to its end. Raises `SenderStopping` when it cannot get there."""
    try:
        while steps.outcome is None:
            names = steps.names
            answers = await asker.answers(steps.asked, names)
            steps.usd += asker.usd(answers, names)
            steps.send(answers)
    except BaseException:
        steps.close()
        raise
    return steps.outcome


async def _worker(
    asker: RequestSender,
    admission: Iterator[tuple[int, tuple[str, Callable[[], Flow[T]]]]],
    choose: Choose,
    outcomes: dict[int, Outcome[T]],
    report: ProgressReport,
) -> None:
    """Drive one flow after another; at the end of the budget only those that the journal can answer."""
    for index, (name, make) in admission:
        if asker.is_stopping and not isinstance(asker.stopped, StoppedByBudget):
            return
        with suppress(SenderStopping):
            steps = FlowState(name, make, choose)
            outcomes[index] = await _finish(steps, asker)
            report.finished(len(outcomes), steps.usd)
        await asyncio.sleep(0)  # a replayed flow never waits; let Ctrl-C and the others in


class _Growing:
    """A growth in progress: proposals start and are admitted strictly in order, whatever the order of answers.

    A proposal's first request goes out only when its turn comes or an earlier one has to wait, so that replaying a
    finished growth asks nothing.
    """

    def __init__(self, growth: Growth, target: int, report: ProgressReport) -> None:
        self._growth = growth
        self._target = target
        self._report = report
        self._tasks: list[Task] = []
        self._begun: dict[int, FlowState[list[Task]]] = {}
        self._running: dict[int, asyncio.Task[Outcome[list[Task]]]] = {}
        self._next = self._admitted = self._candidates = 0
        self._barren = self._barren_candidates = 0
        self._failures: list[Failure] = []
        self._errors: list[str] = []

    def grown(self) -> GrowthResult:
        """As far as it came."""
        return GrowthResult(
            tasks=self._tasks[: self._target],
            requests=self._admitted,
            candidates=self._candidates,
            failures=tuple(self._failures),
            errors=tuple(self._errors),
        )

    async def work(self, asker: RequestSender) -> None:
        """Propose and admit until the target is reached; what is begun beyond it is dropped."""
        try:
            while len(self._tasks) < self._target:
                window = max(1, self._growth.window)
                while len(self._begun) < window:
                    self._begin()
                k = min(self._begun)
                await self._finish(k, asker)
                self._admit(k, self._begun.pop(k).outcome)
                if self._barren >= BARREN_WINDOWS * window + BARREN_MORE:
                    raise StoppedShort(self._nothing_new())
        except DistillError as error:
            asker.stop(error)
        finally:
            asker.stop(None)
            await self._drop()

    def _begin(self) -> None:
        k, self._next = self._next, self._next + 1
        self._begun[k] = FlowState(str(k), lambda: self._growth.propose(k), by_role)

    async def _finish(self, k: int, asker: RequestSender) -> None:
        """Take proposal k to its end: from the journal where that has everything, else all begun ones at once."""
        steps = self._begun[k]
        if k not in self._running:
            while steps.outcome is None and (answers := asker.recall(steps.asked, steps.names)) is not None:
                steps.send(answers)
        if steps.outcome is None:
            for other in sorted(self._begun.keys() - self._running.keys()):
                self._running[other] = asyncio.create_task(_finish(self._begun[other], asker))
        if (running := self._running.pop(k, None)) is not None:
            await running
        await asyncio.sleep(0)  # a replayed proposal never waits; let Ctrl-C in

    def _admit(self, k: int, outcome: Outcome[list[Task]] | None) -> None:
        assert outcome is not None
        for failure in outcome.failures:
            if failure.transient:
                raise StoppedShort(self._not_answered(failure))
        candidates = outcome.value or []
        admitted = self._growth.admit(k, candidates)
        self._tasks += admitted
        self._admitted = k + 1
        self._candidates += len(candidates)
        self._barren = 0 if admitted else self._barren + 1
        self._barren_candidates = 0 if admitted else self._barren_candidates + len(candidates)
        self._failures += [failure for failure in outcome.failures if failure.key]
        self._errors += [outcome.error] if outcome.error else []
        self._report.done = min(len(self._tasks), self._target)
        self._report.tick()

    async def _drop(self) -> None:
        """Let go of what was begun beyond the end; what is in flight is finished for the journal."""
        if self._running:
            await asyncio.wait(list(self._running.values()))
        for running in self._running.values():
            running.cancelled() or running.exception()
        for steps in self._begun.values():
            steps.close()

    def _so_far(self) -> str:
        return f"{len(self._tasks)} of {self._target} tasks after {self._admitted} proposals"

    def _not_answered(self, failure: Failure) -> str:
        return (
            f"{self._so_far()}: a request was not answered in {failure.attempts} attempts ({failure.reason}:"
            f" {failure.detail}); run again to go on from here"
        )

    def _nothing_new(self) -> str:
        last = (self._errors[-1:] or [f"{failure.reason}: {failure.detail}" for failure in self._failures[-1:]]) or [""]
        found = f"{self._barren_candidates} candidates, all refused" if self._barren_candidates else "no candidates"
        return (
            f"{self._so_far()}: the last {self._barren} proposals brought nothing new ({found}"
            f"{'; last: ' + last[0] if last[0] else ''}); ask for fewer tasks, give more seeds or a higher temperature"
        )
