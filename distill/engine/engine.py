"""Runs flows and growths: sends their requests, feeds answers back, and returns their results."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

from distill.core import event_loop
from distill.core.console import Progress, Say, Silent, silent
from distill.engine import (
    EngineStopped,
    GrowthResult,
    Outcome,
    StoppedAtMiss,
    StoppedByBudget,
    StoppedByUser,
    StoppedShort,
    Tally,
)
from distill.engine.budget import Budget
from distill.engine.flows import Choose, Flows, FlowState, by_role
from distill.engine.journal.keys import Question
from distill.engine.journal.store import Journal
from distill.engine.policy import BoundEndpoint, RequestPolicy, SenderStopping
from distill.engine.progress import ProgressReport
from distill.engine.providers import Provider
from distill.engine.retry import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, RetryPolicy
from distill.engine.sender import RequestSender
from distill.errors import DistillError
from distill.types import Failure, Flow, Growth, Task

T = TypeVar("T")

FLOWS_PER_SLOT = 2
"""Flows begun per request that may be in flight: enough to fill every slot, few enough to hold in memory."""
COLLECT_EVERY = 50_000
"""New objects between two garbage collections while requests are in flight; Python's default is 700."""
BARREN_WINDOWS, BARREN_MORE = 3, 24
"""A growth stops after 3 · window + 24 proposals in a row without a new task."""


class Engine:
    """Answers the requests of flows: from the journal, else from the provider of each request's role.

    Every answer is committed before it is used. `endpoints` are by name: a request's role, unless `run` gets another
    `choose`; a bare provider has no limits and no price. `concurrency` bounds the requests in flight to an endpoint
    whose own rates do not, `attempts` the sends of one request. `stage` is written beside every answer. `retry_failed`
    asks again what failed permanently in an earlier run. `budget` counts USD and may cap them. With `on_miss` nothing
    is sent: it is called with the name of each flow that the journal cannot finish, and the flow's first question
    without an answer. `say` takes the forecast after the first `PILOT` answers, and what a growth still waits for.
    """

    def __init__(
        self,
        journal: Journal,
        endpoints: Mapping[str, BoundEndpoint | Provider],
        *,
        concurrency: int = 32,
        attempts: int = 10,
        retry_failed: bool = False,
        progress: Progress | None = None,
        stage: str = "",
        budget: Budget | None = None,
        on_miss: Callable[[str, Question], None] | None = None,
        say: Say = silent,
        first_wait_seconds: float = FIRST_WAIT_SECONDS,
        longest_wait_seconds: float = LONGEST_WAIT_SECONDS,
    ) -> None:
        self.tally = Tally()
        self._journal = journal
        self._endpoints = {
            name: one if isinstance(one, BoundEndpoint) else BoundEndpoint(one) for name, one in endpoints.items()
        }
        self._policy = RequestPolicy(
            concurrency=concurrency,
            retries=RetryPolicy(
                attempts=attempts, first_wait_seconds=first_wait_seconds, longest_wait_seconds=longest_wait_seconds
            ),
            retry_failed=retry_failed,
            stage=stage,
            on_miss=on_miss,
        )
        self._progress = progress or Silent()
        self._say = say
        self._budget = budget or Budget({})
        self._budget.check(self._endpoints)

    def run(self, flows: Flows[T], *, choose: Choose = by_role) -> list[Outcome[T]]:
        """Run every flow to its end; one outcome per flow, in input order.

        `choose` maps a flow's name and a request's role to an endpoint's name. Flows are made in order, as late as
        possible. Raises `EngineStopped` with the finished outcomes on Ctrl-C, at the end of the budget, or where an
        endpoint cannot serve; `StoppedAtMiss` where nothing may be sent; and any `DistillError` of a provider as it is.
        """
        outcomes: dict[int, Outcome[T]] = {}
        report = self._report(len(flows))

        async def work(sender: RequestSender) -> None:
            admission = iter(enumerate(flows))
            workers = min(len(flows), FLOWS_PER_SLOT * self._slots())
            await asyncio.gather(*(_worker(sender, admission, choose, outcomes, report) for _ in range(workers)))
            if sender.misses:
                raise StoppedAtMiss(f"the journal cannot finish {sender.misses} of {len(flows)} flows")

        try:
            self._drive(work, report)
        except EngineStopped as stop:
            stop.outcomes = [outcomes[index] for index in sorted(outcomes)]
            raise
        return [outcomes[index] for index in range(len(flows))]

    def grow(self, growth: Growth, target: int) -> GrowthResult:
        """Grow until `target` tasks are admitted; the same tasks at any concurrency and latency.

        Raises `StoppedShort` where a transient failure outlives its retries, or where proposals bring no new task; and
        what `run` raises. The exception's `growth` has what was admitted so far.
        """
        report = self._report(target)
        growing = _Growing(growth, target, report)
        try:
            self._drive(growing.work, report)
        except EngineStopped as stop:
            stop.growth = growing.result()
            raise
        return growing.result()

    def _report(self, total: int) -> ProgressReport:
        return ProgressReport(self._progress, total, self.tally, title=self._policy.stage, say=self._say)

    def _slots(self) -> int:
        """Requests that may be in flight in all."""
        return sum(one.rates.concurrency or self._policy.concurrency for one in self._endpoints.values())

    def _drive(self, work: Callable[[RequestSender], Awaitable[None]], report: ProgressReport) -> None:
        try:
            with _fewer_collections():
                event_loop.run(self._with_sender(work, report))
        except KeyboardInterrupt:  # the second one: requests in flight are dropped
            raise StoppedByUser(_interrupted(report)) from None
        report.end()

    async def _with_sender(self, work: Callable[[RequestSender], Awaitable[None]], report: ProgressReport) -> None:
        """Run `work` until it ends and nothing is in flight; after the first Ctrl-C nothing more is sent."""
        sender = RequestSender(
            self._journal,
            self._endpoints,
            policy=self._policy,
            budget=self._budget,
            tally=self.tally,
            on_change=report.tick,
        )
        report.sender = sender
        ticking = asyncio.ensure_future(report.keep_ticking())
        try:
            await _patiently(asyncio.ensure_future(_to_the_end(work, sender)), sender, report)
        finally:
            ticking.cancel()
            for provider in {id(one.provider): one.provider for one in self._endpoints.values()}.values():
                await provider.close()
        if isinstance(sender.stopped, StoppedByUser):
            raise StoppedByUser(_interrupted(report))  # a new one: its message counts the answers that were in flight
        if sender.stopped is not None:
            raise sender.stopped


@contextmanager
def _fewer_collections() -> Iterator[None]:
    """Collect garbage less often.

    Thousands of requests in flight survive each collection, which takes a third of the CPU time at 1,000 in flight and
    frees nothing.
    """
    before = gc.get_threshold()
    if before[0]:  # 0 turns collection off
        gc.set_threshold(max(before[0], COLLECT_EVERY), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def _to_the_end(work: Callable[[RequestSender], Awaitable[None]], sender: RequestSender) -> None:
    try:
        with suppress(SenderStopping):
            await work(sender)
    finally:
        sender.stop(None)
        await sender.drain()


async def _patiently(work: asyncio.Future[None], sender: RequestSender, report: ProgressReport) -> None:
    """Wait for the work. `event_loop.run` turns the first Ctrl-C into a cancellation, the second into an exception."""
    work.add_done_callback(lambda done: done.cancelled() or done.exception())  # a second Ctrl-C may end it alone
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        sender.stop(StoppedByUser())
        report.is_interrupted = True
        report.end()
        if (this := asyncio.current_task()) is not None:
            this.uncancel()
        await asyncio.wait([work])
    work.result()


def _interrupted(report: ProgressReport) -> str:
    return f"interrupted: {report.done} of {report.total} are finished and kept; run the same command again to go on"


async def _finish(state: FlowState[T], sender: RequestSender) -> Outcome[T]:
    """Run a flow to its end. Raises `SenderStopping` where nothing more may be sent."""
    try:
        while state.outcome is None:
            answers = await sender.answers(state)
            state.usd += sender.usd(answers, state.names)
            state.send(answers)
    except BaseException:
        state.close()
        raise
    return state.outcome


async def _worker(
    sender: RequestSender,
    admission: Iterator[tuple[int, tuple[str, Callable[[], Flow[T]]]]],
    choose: Choose,
    outcomes: dict[int, Outcome[T]],
    report: ProgressReport,
) -> None:
    """Run one flow after another; once the budget is used up, only those that the journal can answer finish."""
    for index, (name, make) in admission:
        if sender.is_stopping and not isinstance(sender.stopped, StoppedByBudget):
            return
        with suppress(SenderStopping):
            state = FlowState(name, make, choose)
            outcomes[index] = await _finish(state, sender)
            report.finished(len(outcomes), state.usd, state.tokens)
        await asyncio.sleep(0)  # a replayed flow never waits: let Ctrl-C and other flows in


class _Growing:
    """A growth in progress: proposals start and are admitted strictly in order, whatever the order of answers.

    A proposal's first request is sent only when its turn comes or an earlier proposal has to wait, so that replaying a
    finished growth sends nothing.
    """

    def __init__(self, growth: Growth, target: int, report: ProgressReport) -> None:
        self._growth = growth
        self._target = target
        self._report = report
        self._tasks: list[Task] = []
        self._proposals: dict[int, FlowState[list[Task]]] = {}
        self._running: dict[int, asyncio.Task[Outcome[list[Task]]]] = {}
        self._next = self._admitted = self._candidates = 0
        self._barren = self._barren_candidates = 0
        self._failures: list[Failure] = []
        self._errors: list[str] = []

    def result(self) -> GrowthResult:
        """What was admitted so far."""
        return GrowthResult(
            tasks=self._tasks[: self._target],
            requests=self._admitted,
            candidates=self._candidates,
            failures=tuple(self._failures),
            errors=tuple(self._errors),
        )

    async def work(self, sender: RequestSender) -> None:
        """Propose and admit until the target is reached; proposals begun beyond it are dropped."""
        try:
            while len(self._tasks) < self._target:
                window = max(1, self._growth.window)
                while len(self._proposals) < window:
                    self._begin()
                k = min(self._proposals)
                await self._finish(k, sender)
                self._admit(k, self._proposals.pop(k))
                if self._barren >= BARREN_WINDOWS * window + BARREN_MORE:
                    raise StoppedShort(self._nothing_new())
        except DistillError as error:
            sender.stop(error)
        finally:
            sender.stop(None)
            await self._drop(sender)

    def _begin(self) -> None:
        k, self._next = self._next, self._next + 1
        self._proposals[k] = FlowState(f"proposal {k}", lambda: self._growth.propose(k), by_role)

    async def _finish(self, k: int, sender: RequestSender) -> None:
        """Run proposal k to its end: from the journal if that has every answer, else together with those begun.

        Those that will hardly be needed are not sent before their turn.
        """
        state = self._proposals[k]
        if k not in self._running:
            while state.outcome is None and (answers := sender.recall(state)) is not None:
                state.send(answers)
        if sender.misses:
            raise StoppedAtMiss(self._so_far())
        if state.outcome is None:
            useful = self._report.proposals_for(self._target - len(self._tasks))
            waiting = [other for other in sorted(self._proposals)[:useful] if other not in self._running]
            for other in waiting:
                self._running[other] = asyncio.create_task(_finish(self._proposals[other], sender))
        if (running := self._running.pop(k, None)) is not None:
            await running
        await asyncio.sleep(0)  # a replayed proposal never waits: let Ctrl-C in

    def _admit(self, k: int, state: FlowState[list[Task]]) -> None:
        outcome = state.outcome
        assert outcome is not None
        for failure in outcome.failures:
            if failure.transient and failure.reason != "http_403":  # others were answered: a firewall refuses this text
                raise StoppedShort(self._not_answered(failure))
        candidates = outcome.value or []
        tasks = self._growth.admit(k, candidates)
        self._tasks += tasks
        self._admitted = k + 1
        self._candidates += len(candidates)
        self._barren = 0 if tasks else self._barren + 1
        self._barren_candidates = 0 if tasks else self._barren_candidates + len(candidates)
        self._failures += [failure for failure in outcome.failures if failure.key]
        self._errors += [outcome.error] if outcome.error else []
        done = min(len(self._tasks), self._target)
        self._report.admitted(done, len(tasks), self._growth.window, state.usd, state.tokens)

    async def _drop(self, sender: RequestSender) -> None:
        """Drop proposals begun beyond the target. Requests in flight are finished for the journal, save our own."""
        in_flight = sender.in_flight
        if len(self._tasks) >= self._target:
            in_flight -= await sender.sends.abandon()
            self._report.await_rest(in_flight)
        if self._running:
            await asyncio.wait(list(self._running.values()))
        for running in self._running.values():
            running.cancelled() or running.exception()
        for state in self._proposals.values():
            state.close()

    def _so_far(self) -> str:
        return f"{len(self._tasks)} of {self._target} tasks after {self._admitted} proposals"

    def _not_answered(self, failure: Failure) -> str:
        return (
            f"{self._so_far()}: a request was not answered in {failure.attempts} attempts ({failure.reason}:"
            f" {failure.detail}); run again to go on from here"
        )

    def _nothing_new(self) -> str:
        faults = self._errors or [f"{failure.reason}: {failure.detail}" for failure in self._failures]
        notes = [f"{self._barren_candidates} candidates, all refused" if self._barren_candidates else "no candidates"]
        notes += [f"last: {fault}" for fault in faults[-1:]]
        return (
            f"{self._so_far()}: the last {self._barren} proposals brought nothing new ({'; '.join(notes)}); ask for"
            " fewer tasks, give more seeds or a higher temperature"
        )
