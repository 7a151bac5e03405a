"""Answers one request: from the journal, else by sending it within concurrency, budget and retry limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

from distill.engine import StoppedByBudget, StoppedByEndpoint, Tally
from distill.engine.backpressure import SendOutcome, Ticket, outcome_of
from distill.engine.budget import Budget, within_bounds
from distill.engine.flows import FlowState
from distill.engine.journal.keys import Question
from distill.engine.journal.recall import recall
from distill.engine.journal.records import FORGET, Bill, Change, answered, failed, intention, settled
from distill.engine.journal.store import Journal
from distill.engine.policy import (
    FAULT,
    JUDGED,
    NOT_SENT,
    REFUSALS,
    BoundEndpoint,
    OpenQuestion,
    RequestPolicy,
    SenderStopping,
    Sends,
    Standing,
    completion_of,
    expected_tokens,
    missing_role,
)
from distill.engine.providers import ProviderError, Reply
from distill.engine.rate_limits import LONGEST_WAIT_SECONDS, Limiter, LimiterClosed, too_long
from distill.errors import DistillError, EndpointError
from distill.types import Answer, Completion, Failure, Request


class RequestSender:
    """Sends the requests of one drive; belongs to one event loop.

    After `stop`, requests in flight are finished and committed, and nothing else is sent.
    """

    def __init__(
        self,
        journal: Journal,
        endpoints: Mapping[str, BoundEndpoint],
        *,
        policy: RequestPolicy,
        budget: Budget,
        tally: Tally,
        on_change: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._endpoints = endpoints
        self._policy = policy
        self._budget = budget
        self._tally = tally
        self._on_change = on_change
        self._accounts: dict[str, tuple[Limiter, Standing]] = {}
        """By endpoint and key, which several names may share."""
        self._open: dict[str, list[asyncio.Future[Answer]]] = {}
        """Futures that wait for the answer to a question in flight, by its key."""
        self._idle = asyncio.Event()
        self._failed: dict[str, Failure] = {}
        self._retries: dict[str, float] = {}
        """By the key of each question to be sent again, when (monotonic)."""
        self._reached: set[str] = set()
        """Names of endpoints that have responded."""
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()
        self._last_write: asyncio.Future[int] | None = None
        self.stopped: DistillError | None = None
        self.sends = Sends()
        self.in_flight = 0
        self.last_fault = ""
        """The last failed send, in a few words; empty where a request was answered since and none has failed."""
        self.misses = 0
        """Flows that ended at a question that the journal cannot answer, where nothing may be sent."""

    def stop(self, error: DistillError | None) -> None:
        """Send nothing more. `error` is the reason unless the work is done; only the first call counts."""
        if not self._stopping.is_set():
            self.stopped = error
            self._stopping.set()
            self._settled.set()
            for limiter, _ in self._accounts.values():
                limiter.close()

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is sent."""
        return self._stopping.is_set()

    def describe_waits(self) -> str:
        """What requests wait for, in a few words: the limit of each endpoint, and the next retry."""
        if not self._open:
            return ""
        notes = dict.fromkeys(limiter.describe() for limiter, _ in self._accounts.values())
        if self._retries:
            seconds = max(0.0, min(self._retries.values()) - time.monotonic())
            notes |= {f"{len(self._retries)} to be sent again, the next in {seconds:.0f} s": None}
        return "; ".join(notes)

    def recall(self, flow: FlowState[Any]) -> tuple[Answer, ...] | None:
        """The answers to a flow's requests if the journal has all of them; counts them as replayed."""
        answers: list[Answer] = []
        for request, name in zip(flow.requests, flow.names, strict=True):
            question = Question.of(request, self._endpoint(name).provider.endpoint)
            if (answer := self._recalled(question)) is None:
                self._miss(flow.name, question)
                return None
            answers.append(answer)
        self._tally.replayed += len(answers)
        return tuple(answers)

    def _miss(self, flow: str, question: Question) -> None:
        if self._policy.on_miss is not None:
            self.misses += 1
            self._policy.on_miss(flow, question)

    def _recalled(self, question: Question) -> Answer | None:
        if question.key in self._failed:
            return self._failed[question.key]
        return recall(self._journal, question, retry_failed=self._policy.retry_failed)

    async def answers(self, flow: FlowState[Any]) -> tuple[Answer, ...]:
        """One answer to each of a flow's requests, all sent at once. Raises `SenderStopping` if one is not sent."""
        if self._policy.on_miss is not None:
            if (answers := self.recall(flow)) is None:
                raise SenderStopping
            return answers
        pairs = list(zip(flow.requests, flow.names, strict=True))
        if len(pairs) == 1:
            return (await self.answer(*pairs[0]),)
        return tuple(await asyncio.gather(*(self.answer(request, name) for request, name in pairs)))

    async def answer(self, request: Request, name: str) -> Answer:
        """The journal's answer, or the endpoint's; a question that is already in flight is not sent again."""
        endpoint = self._endpoint(name)
        question = Question.of(request, endpoint.provider.endpoint)
        if (waiters := self._open.get(question.key)) is not None:
            waiters.append(asyncio.get_running_loop().create_future())
            return await waiters[-1]
        if (answer := self._recalled(question)) is not None:
            self._tally.replayed += 1
            return answer
        self._check()
        waiters = self._open[question.key] = []
        try:
            return (answer := await self._ask(question, name, endpoint))
        finally:
            del self._open[question.key]
            self._resolve(waiters, answer)

    def _resolve(self, waiters: list[asyncio.Future[Answer]], answer: Answer | None) -> None:
        for future in waiters:
            if answer is None and not future.done():
                future.set_exception(SenderStopping())
            elif answer is not None and not future.done():
                future.set_result(answer)
        if not self._open:
            self._idle.set()
        self._on_change()

    async def drain(self) -> None:
        """Wait for requests in flight, and for the last write about them."""
        while self._open:
            self._idle.clear()
            await self._idle.wait()
        if self._last_write is not None:
            await asyncio.wait([self._last_write])
            self._last_write.exception()  # the request that needed the write has raised its error already

    def _endpoint(self, name: str) -> BoundEndpoint:
        if name not in self._endpoints:
            self.stop(missing_role(name, self._endpoints))
            raise SenderStopping
        return self._endpoints[name]

    def _account_of(self, endpoint: BoundEndpoint) -> tuple[Limiter, Standing]:
        account = getattr(endpoint.provider, "account", None) or str(id(endpoint.provider))
        if account not in self._accounts:
            concurrency = endpoint.rates.concurrency or self._policy.concurrency
            self._accounts[account] = Limiter(replace(endpoint.rates, concurrency=concurrency)), Standing()
        return self._accounts[account]

    def _check(self) -> None:
        if self._stopping.is_set():
            raise SenderStopping

    async def _ask(self, question: Question, name: str, endpoint: BoundEndpoint) -> Answer:
        """The answer, committed. A `DistillError` stops the sender."""
        try:
            most = self._budget.most(name, question.request)
            open_question = OpenQuestion(question, name, endpoint.provider, *self._account_of(endpoint), most)
            return await self._until_answered(open_question)
        except EndpointError as error:
            self.stop(error if isinstance(error, StoppedByEndpoint) else StoppedByEndpoint(str(error)))
            raise SenderStopping from error
        except DistillError as error:
            self.stop(error)
            raise SenderStopping from error

    async def _until_answered(self, sending: OpenQuestion) -> Answer:
        try:
            for attempt in count(1):
                try:
                    return await self._send(sending, attempt)
                except ProviderError as error:
                    self.last_fault = error.words
                    if error.reply:
                        await sending.standing.judge(error, self._journal, sending.question.endpoint)
                    if (failure := self._failure(sending, error, attempt)) is not None:
                        return await self._fail(sending, failure)
                    is_healthy = sending.limiter.is_healthy()
                    wait_seconds = self._policy.retries.wait_seconds(attempt, error, is_healthy=is_healthy)
                    self._retries[sending.question.key] = time.monotonic() + wait_seconds
                    await self._sleep(wait_seconds)
                    self._retries.pop(sending.question.key, None)
            raise AssertionError("count ended")
        finally:
            self._retries.pop(sending.question.key, None)
            if sending.unsettled:
                self._commit(sending, ())  # not waited for; `drain` does

    async def _send(self, sending: OpenQuestion, attempt: int) -> Completion:
        """One send with a ticket: budget reserved, intent written, request sent, cost settled, answer committed."""
        expected = expected_tokens(sending.most, self._tally, self.in_flight)
        try:
            ticket = await sending.limiter.enter(expected, again=attempt > 1)
        except LimiterClosed:
            raise SenderStopping from None
        await sending.standing.certain()
        reply: Reply | None = None
        failed_with: BaseException | None = None
        self.in_flight += 1
        sending.standing.in_flight += 1
        try:
            await self._reserve(sending.most)
            send = await self._intend(sending, attempt)
            reply = within_bounds(await self._sent(sending, send), sending.most)
        except BaseException as raised:
            failed_with = raised
            raise
        finally:
            self.in_flight -= 1
            sending.standing.ended(failed_with)
            self._leave(sending, ticket, reply, failed_with)
        return await self._keep(sending, send, reply)

    def _leave(self, sending: OpenQuestion, ticket: Ticket, reply: Reply | None, error: BaseException | None) -> None:
        usage = reply.usage if reply is not None else None
        refusal = error if isinstance(error, ProviderError) else None
        response = refusal or reply
        # `_failure` stops a run whose endpoint is unreachable; the limiter has nothing to adapt to then
        is_unreachable = refusal is not None and refusal.reason == "refused" and sending.name not in self._reached
        sending.limiter.leave(
            ticket,
            SendOutcome.REFUSAL if is_unreachable else outcome_of(error),
            used=None if usage is None else usage.prompt_tokens + usage.completion_tokens,
            report=response.report if response is not None else None,
            retry_after=refusal.retry_after if refusal is not None else None,
        )
        self._on_change()

    async def _reserve(self, most: Bill) -> None:
        """Reserve the worst case, waiting for other sends to settle where it does not fit yet."""
        while not self._budget.reserve(most):
            if self._budget.in_flight == 0:
                raise StoppedByBudget(self._budget.verdict(most))
            self._settled.clear()
            await self._settled.wait()
            self._check()

    async def _intend(self, sending: OpenQuestion, attempt: int) -> int:
        """Write the send's intent, and the outcome of the one before; returns the send's number."""
        try:
            self._check()
            sending.intent = intention(
                sending.question.key,
                attempt,
                stage=self._policy.stage,
                role=sending.name,
                model=sending.question.endpoint.model,
                most=sending.most,
            )
            send = await self._commit(sending, sending.intent)
        except BaseException:
            self._budget.settle_error(sending.most, NOT_SENT)
            self._settled.set()
            raise
        sending.sends += 1
        self._tally.asked += sending.sends == 1
        self._tally.retried += sending.sends > 1
        return send

    async def _sent(self, sending: OpenQuestion, send: int) -> Reply:
        """The provider's reply; the cost of a failed send is booked."""
        try:
            self._check()  # Ctrl-C may have come while the intent was written
            return await self.sends.reply(sending.provider, sending.question.request)
        except BaseException as error:
            is_unsent = isinstance(error, SenderStopping)
            bill = self._budget.settle_error(sending.most, NOT_SENT if is_unsent else error)
            self._tally.wasted_usd += bill.usd or 0.0
            outcome = "unsent" if is_unsent else "free" if bill is not sending.most else "charged"
            sending.unsettled.append(settled(send, bill, outcome, sending.intent))
            self._account()
            raise

    def _account(self) -> None:
        self._tally.usd = self._budget.usd
        self._settled.set()

    def _failure(self, sending: OpenQuestion, error: ProviderError, attempt: int) -> Failure | None:
        """The failure to record, or `None` to send again. Raises `StoppedByEndpoint` where no request can succeed."""
        is_over = self._policy.retries.is_over(attempt)
        if error.reason != "refused":
            self._reached.add(sending.name)
        elif sending.name not in self._reached and (is_over or attempt >= REFUSALS):
            raise StoppedByEndpoint(error.detail)
        if error.fatal and not error.reply:
            raise StoppedByEndpoint(error.detail)
        if error.retry_after is not None and error.retry_after > LONGEST_WAIT_SECONDS:
            raise too_long(error.retry_after, error.detail)
        if error.transient and error.reason != FAULT and not is_over:
            return None
        return Failure(
            key=sending.question.key,
            reason=error.reason,
            detail=error.reply or error.detail,
            transient=error.transient or bool(error.reply) or isinstance(self.stopped, StoppedByEndpoint),
            attempts=attempt,
        )

    async def _fail(self, sending: OpenQuestion, failure: Failure) -> Failure:
        self._tally.failed += 1
        if not failure.transient:
            self._failed[failure.key] = failure
        question = sending.question
        change = failed(failure, question.request_json, question.endpoint, stage=self._policy.stage)
        await self._commit(sending, change)
        if not (failure.transient or self._policy.retry_failed) and sending.standing.fails_alike(failure):
            await self._stop_early(sending)
        return failure

    async def _stop_early(self, sending: OpenQuestion) -> None:
        """Forget failures that are all alike, as their cause is hardly in the requests. Raises `StoppedByEndpoint`."""
        alike = sending.standing.first or []
        await self._commit(sending, tuple((FORGET, (failure.key,)) for failure in alike))
        raise StoppedByEndpoint(
            f"the first {JUDGED} requests to the {sending.name} failed alike: {alike[-1].detail}; correct that and"
            " run the same command again, which asks them once more"
        )

    async def _keep(self, sending: OpenQuestion, send: int, reply: Reply) -> Completion:
        """Commit an answer with its cost."""
        bill = self._budget.settle(sending.name, sending.most, reply.usage)
        self._account()
        question = sending.question
        completion = completion_of(question.key, reply)
        change = answered(
            completion,
            question.request_json,
            question.request.kind,
            question.endpoint,
            stage=self._policy.stage,
            raw_json=reply.raw_json,
        )
        await self._commit(sending, (*change, settled(send, bill, "kept", sending.intent)))
        self._reached.add(sending.name)
        self.last_fault = self.last_fault if self._tally.failed else ""
        self._tally.count(reply.usage)
        return completion

    def _commit(self, sending: OpenQuestion, change: Change) -> asyncio.Future[int]:
        """Write a change, and before it the outcomes of the question's earlier sends."""
        sending.unsettled, earlier = [], sending.unsettled
        self._last_write = self._journal.commit((*earlier, *change))
        return self._last_write

    def usd(self, answers: tuple[Answer, ...], names: tuple[str, ...]) -> float:
        """The cost of these answers at today's prices, whenever they were bought."""
        return sum(
            self._budget.bill(name, answer.usage).usd or 0.0
            for answer, name in zip(answers, names, strict=True)
            if isinstance(answer, Completion) and answer.usage is not None
        )

    async def _sleep(self, seconds: float) -> None:
        """Wait without holding a ticket; a stop ends the wait."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        self._check()
