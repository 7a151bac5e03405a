"""Runs flows through batches: each pass replays every flow to its first cache miss; the misses form batches.

No state is kept between passes, so that a process may end after each and another take over a day later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Generic, TypeVar

from distill.core import console, event_loop
from distill.core.console import Progress, Silent, duration
from distill.engine import (
    EngineStopped,
    Outcome,
    StoppedByBudget,
    StoppedByEndpoint,
    StoppedByUser,
    StoppedShort,
    Tally,
)
from distill.engine.batch.client import BYTES_A_BATCH, REQUESTS_A_BATCH, BatchJobs
from distill.engine.batch.questions import PendingQuestion
from distill.engine.batch.queue import Batches
from distill.engine.budget import Budget
from distill.engine.flows import Choose, Flows, FlowState, by_role
from distill.engine.journal.keys import Question
from distill.engine.journal.recall import recall
from distill.engine.journal.store import Journal
from distill.engine.policy import missing_role
from distill.engine.providers import ProviderError
from distill.errors import EndpointError
from distill.types import Answer, Request

T = TypeVar("T")

POLLS_MISSED = 20
"""Failed polls in a row after which an outage stops the run: ten minutes at the default pace."""


class StoppedPending(EngineStopped):
    """Batches are still running at the provider; run again later."""

    exit_code = 0


class Passes:
    """Counterpart of `Engine` for a provider's batch interface.

    `jobs` are by name, as an engine's endpoints are. `stage` is written beside every answer; a stage's open batches are
    found by it. `budget` must count all that the journal says is spent, open batches included (`spent_usd` does). Open
    batches are polled every `poll_seconds`; without `wait`, a run ends after one poll. `attempts` bounds the sends of a
    question that fails transiently. `retry_failed` asks again what failed permanently.
    """

    def __init__(
        self,
        journal: Journal,
        jobs: Mapping[str, BatchJobs],
        *,
        stage: str = "",
        budget: Budget | None = None,
        poll_seconds: float = 30.0,
        wait: bool = True,
        attempts: int = 3,
        progress: Progress | None = None,
        retry_failed: bool = False,
        requests_a_batch: int = REQUESTS_A_BATCH,
        bytes_a_batch: int = BYTES_A_BATCH,
    ) -> None:
        self.tally = Tally()
        self._journal = journal
        self._jobs = dict(jobs)
        self._stage = stage
        self._budget = budget or Budget({})
        self._budget.check(self._jobs)
        self._poll_seconds = poll_seconds
        self._wait = wait
        self._attempts = attempts
        self._progress = progress or Silent()
        self._retry_failed = retry_failed
        self._missed = 0
        """Failed polls since the last successful one."""
        self._limits = {"requests_a_batch": requests_a_batch, "bytes_a_batch": bytes_a_batch}

    def run(self, flows: Flows[T], *, choose: Choose = by_role) -> list[Outcome[T]]:
        """Run every flow to its end; one outcome per flow, in input order.

        Each flow is made once per pass and must ask the same each time, so it has to make its own random numbers.
        Raises an `EngineStopped` with the finished outcomes: `StoppedPending` without `wait`, `StoppedByUser` on Ctrl-C
        (open batches go on, and the next run takes them over), `StoppedByBudget` once nothing is open and the next
        question does not fit, `StoppedByEndpoint` where a provider cannot serve, also for likelihoods.
        """
        course = self._course(flows, choose)
        try:
            self._drive(self._passes(course), course)
        except EngineStopped as stop:
            stop.outcomes = course.finished()
            raise
        return course.finished()

    def cancel(self) -> int:
        """Cancel all open batches and take in the answers that were finished, which are paid; the number of batches.

        Raises `StoppedPending` without `wait` while providers still work on them.
        """
        course: _Course[Any] = self._course((), by_role)
        cancelled = 0

        async def work() -> None:
            nonlocal cancelled
            cancelled = await course.batches.cancel()
            while course.batches.count:
                if not await self._took_in(course.batches):
                    await self._sleep(course)

        self._drive(work(), course)
        return cancelled

    def _course(self, flows: Flows[T], choose: Choose) -> _Course[T]:
        batches = Batches(
            self._journal,
            self._jobs,
            stage=self._stage,
            budget=self._budget,
            tally=self.tally,
            attempts=self._attempts,
            **self._limits,
        )
        return _Course(
            flows, choose, journal=self._journal, jobs=self._jobs, batches=batches, retry_failed=self._retry_failed
        )

    def _drive(self, work: Coroutine[Any, Any, None], course: _Course[Any]) -> None:
        try:
            event_loop.run(self._closing(work))
        except KeyboardInterrupt:  # `event_loop.run` cancels the work, which is as harmless here as a kill
            raise StoppedByUser(f"interrupted: {course.so_far()}; run the same command again to go on") from None
        except ProviderError as error:
            raise StoppedByEndpoint(f"{error.detail}; run again to go on") from error
        except EngineStopped:
            raise
        except EndpointError as error:
            raise StoppedByEndpoint(str(error)) from error

    async def _closing(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            for jobs in self._jobs.values():
                await jobs.close()

    async def _passes(self, course: _Course[Any]) -> None:
        """Replay, send, wait and take in, until every flow is finished."""
        batches = course.batches
        await self._replay(course)
        await batches.forward()
        while not course.is_finished:
            if await self._took_in(batches):
                await self._replay(course)
            else:
                await batches.submit(course.misses)
                await self._sleep(course)

    async def _replay(self, course: _Course[Any]) -> None:
        for _ in course.replay():
            await asyncio.sleep(0)  # a replayed flow never waits: let Ctrl-C in
        self.tally.replayed = len(course.replayed)
        course.report(self._progress)

    async def _took_in(self, batches: Batches) -> bool:
        """Whether a batch was over; a short outage of the provider does not stop the run."""
        try:
            ended = await batches.take_in()
        except ProviderError as error:
            self._missed += 1
            if not (error.transient and self._wait and self._missed <= POLLS_MISSED):
                raise
            console.warn(f"{error.detail}; asking again in {duration(self._poll_seconds)}")
            return False
        self._missed = 0
        return ended

    async def _sleep(self, course: _Course[Any]) -> None:
        """Wait for the next poll. Raises an `EngineStopped` where there is nothing to wait for, or `wait` is off."""
        course.report(self._progress)
        batches = course.batches
        if batches.count == 0 and batches.unaffordable is not None:
            raise StoppedByBudget(self._budget.verdict(batches.unaffordable))
        if not self._wait:
            raise StoppedPending(f"{course.so_far()}; run the same command again later")
        await asyncio.sleep(self._poll_seconds)


class _Course(Generic[T]):
    """The flows of one run, replayed as far as the journal allows."""

    def __init__(
        self,
        flows: Flows[T],
        choose: Choose,
        *,
        journal: Journal,
        jobs: Mapping[str, BatchJobs],
        batches: Batches,
        retry_failed: bool,
    ) -> None:
        self.batches = batches
        self.misses: dict[str, PendingQuestion] = {}
        """Unanswered questions of the last replay, by key, in the order of the flows."""
        self.replayed: set[str] = set()
        """Questions that were answered before this run."""
        self._flows = flows
        self._choose = choose
        self._journal = journal
        self._jobs = jobs
        self._retry_failed = retry_failed
        self._outcomes: dict[int, Outcome[T]] = {}
        self._missed: dict[int, set[str]] = {}
        """Keys of the questions at which each flow stopped in the last replay."""

    @property
    def is_finished(self) -> bool:
        """Whether every flow is."""
        return len(self._outcomes) == len(self._flows)

    def finished(self) -> list[Outcome[T]]:
        """The finished flows, in input order."""
        return [self._outcomes[index] for index in sorted(self._outcomes)]

    def so_far(self) -> str:
        """The number of finished flows, and the state of open batches."""
        done = f"{len(self._outcomes)} of {len(self._flows)} are finished and kept" if self._flows else ""
        return "; ".join(filter(None, [done, self.batches.note()]))

    def report(self, progress: Progress) -> None:
        """Update the progress."""
        progress.update(len(self._outcomes), len(self._flows), self.batches.note())

    def replay(self) -> Iterator[None]:
        """Run every unfinished flow from its beginning to its end or its first misses; yields after each."""
        self.misses = {}
        for index, (name, make) in enumerate(self._flows):
            if index not in self._outcomes:
                flow = FlowState(name, make, self._choose)
                self._replay(index, flow)
                if flow.outcome is None:
                    flow.close()
                else:
                    self._outcomes[index] = flow.outcome
                yield

    def _replay(self, index: int, flow: FlowState[T]) -> None:
        earlier = self._missed.pop(index, set())
        while flow.outcome is None:
            questions = [self._question(*pair) for pair in zip(flow.names, flow.requests, strict=True)]
            earlier -= {one.question.key for one in questions}
            recalled = [self._recalled(one.question) for one in questions]
            answers = tuple(answer for answer in recalled if answer is not None)
            if len(answers) < len(questions):
                known = {answer.key for answer in answers}
                misses = {one.question.key: one for one in questions if one.question.key not in known}
                self._missed[index] = set(misses)
                self.misses |= misses
                break
            self.replayed |= {answer.key for answer in answers} - self.batches.asked
            flow.send(answers)
        if earlier:
            raise StoppedShort(
                f"{flow.name} asked something else when it was made again, so that its answers cannot be used;"
                " a flow must ask the same each time, and make its own random numbers"
            )

    def _question(self, name: str, request: Request) -> PendingQuestion:
        if name not in self._jobs:
            raise missing_role(name, self._jobs)
        return PendingQuestion(name, Question.of(request, self._jobs[name].endpoint))

    def _recalled(self, question: Question) -> Answer | None:
        if question.key in self.batches.failed:
            return self.batches.failed[question.key]
        return recall(self._journal, question, retry_failed=self._retry_failed)
