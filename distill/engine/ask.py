"""Answers one request: from the journal, else by asking once, in a slot, within the budget, with patience."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from itertools import count

from distill.engine import StoppedByBudget, StoppedByEndpoint, Tally
from distill.engine.budget import Budget
from distill.engine.retry import LONGEST_RETRY_AFTER_SECONDS, Patience
from distill.errors import DistillError, RecipeError
from distill.journal import Journal, key
from distill.providers import Provider, ProviderError, Reply
from distill.types import Answer, Completion, Endpoint, Failure, Request

REFUSALS = 3
"""Sends of one request without a connection, after which an endpoint that never answered counts as unreachable."""

FAULT = "error"
"""The reason of a provider's own fault: not asked again in this run, for it may have been paid."""


class Stopping(Exception):
    """Raised into whoever waits for an answer that will not be asked any more."""


class Asker:
    """One drive's way to the endpoints; belongs to one event loop.

    `stop` ends it: what is in flight is finished and committed, nothing else is sent.
    """

    def __init__(
        self,
        journal: Journal,
        providers: Mapping[str, Provider],
        *,
        concurrency: int,
        patience: Patience,
        budget: Budget,
        tally: Tally,
        retry_failed: bool,
        stage: str,
        on_change: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._providers = providers
        self._slots = asyncio.Semaphore(concurrency)
        self._patience = patience
        self._budget = budget
        self._tally = tally
        self._retry_failed = retry_failed
        self._stage = stage
        self._on_change = on_change
        self._asking: dict[str, asyncio.Task[Answer]] = {}
        self._failed: dict[str, Failure] = {}
        self._reached: set[str] = set()
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()
        self.stopped: DistillError | None = None
        self.in_flight = 0

    def stop(self, error: DistillError | None) -> None:
        """Send nothing more; `error` says why, if anything is wrong. The first call counts."""
        if not self._stopping.is_set():
            self.stopped = error
            self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is sent."""
        return self._stopping.is_set()

    def recall(self, requests: tuple[Request, ...]) -> tuple[Answer, ...] | None:
        """The answers if the journal has all of them; sends nothing, and counts them as replayed."""
        found = [self._recalled(key(request, self._provider(request).endpoint)) for request in requests]
        answers = tuple(answer for answer in found if answer is not None)
        if len(answers) < len(found):
            return None
        self._tally.replayed += len(answers)
        return answers

    def _recalled(self, key: str) -> Answer | None:
        if key in self._failed:
            return self._failed[key]
        found = self._journal.get(key)
        return None if isinstance(found, Failure) and self._retry_failed else found

    async def answers(self, requests: tuple[Request, ...]) -> tuple[Answer, ...]:
        """One answer a request, asked at once. Raises `Stopping` when one of them will not be asked."""
        if len(requests) == 1:
            return (await self.answer(requests[0]),)
        return tuple(await asyncio.gather(*(self.answer(request) for request in requests)))

    async def answer(self, request: Request) -> Answer:
        """The journal's answer, or the endpoint's; the same question in flight is asked once."""
        provider = self._provider(request)
        of = key(request, provider.endpoint)
        if of not in self._asking:
            if (found := self._recalled(of)) is not None:
                self._tally.replayed += 1
                return found
            self._check()
            self._asking[of] = asyncio.create_task(self._ask(of, request, provider))
            self._asking[of].add_done_callback(lambda task: self._asked(of, task))
        return await asyncio.shield(self._asking[of])

    def _asked(self, of: str, task: asyncio.Task[Answer]) -> None:
        del self._asking[of]
        if not task.cancelled():
            task.exception()  # who waited has it; a task that nobody waits for any more is no news
        self._on_change()

    async def drain(self) -> None:
        """Wait for what is in flight."""
        while self._asking:
            await asyncio.wait(list(self._asking.values()))

    def _provider(self, request: Request) -> Provider:
        if request.role not in self._providers:
            known = ", ".join(sorted(self._providers))
            self.stop(RecipeError(f'no model for the role "{request.role}"; add it to the recipe (there is: {known})'))
            raise Stopping
        return self._providers[request.role]

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopping

    async def _ask(self, key: str, request: Request, provider: Provider) -> Answer:
        """The answer, committed. A `DistillError` on the way stops everything."""
        try:
            return await self._until_answered(key, request, provider)
        except DistillError as error:
            self.stop(error)
            raise Stopping from error

    async def _until_answered(self, key: str, request: Request, provider: Provider) -> Answer:
        for attempt in count(1):
            try:
                reply = await self._send(key, request, provider, attempt)
            except ProviderError as error:
                if (failure := self._failure(key, request, error, attempt)) is not None:
                    return await self._fail(failure, request, provider.endpoint)
                await self._sleep(self._patience.wait_seconds(attempt, error))
            else:
                return await self._keep(key, request, provider.endpoint, reply)
        raise AssertionError("count ended")

    async def _send(self, key: str, request: Request, provider: Provider, attempt: int) -> Reply:
        """One send in a slot: reserved, noted in the journal, sent, settled."""
        async with self._slots:
            self._check()
            reserved_usd = await self._reserve(request)
            self.in_flight += 1
            self._on_change()
            try:
                await _committed(self._journal.intend(key, attempt, stage=self._stage))
                self._tally.asked += attempt == 1
                self._tally.retried += attempt > 1
                reply = await _sent(provider, request)
            except BaseException as error:
                self._budget.settle_error(reserved_usd, error)
                raise
            else:
                self._budget.settle(request, reserved_usd, reply.usage)
            finally:
                self.in_flight -= 1
                self._account()
        return reply

    async def _reserve(self, request: Request) -> float:
        """Set the worst case aside, waiting for others to settle where it does not fit yet."""
        while (reserved_usd := self._budget.reserve(request)) is None:
            if self._budget.in_flight == 0:
                raise StoppedByBudget(self._budget.verdict(request))
            await self._settled.wait()
            self._check()
        return reserved_usd

    def _account(self) -> None:
        self._tally.usd = self._budget.usd
        self._settled.set()
        self._settled = asyncio.Event()
        self._on_change()

    def _failure(self, key: str, request: Request, error: ProviderError, attempt: int) -> Failure | None:
        """The failure that an error amounts to, or `None` to ask again. Raises `StoppedByEndpoint` for the hopeless."""
        is_over = self._patience.is_over(attempt)
        if error.reason != "refused":
            self._reached.add(request.role)
        elif request.role not in self._reached and (is_over or attempt >= REFUSALS):
            raise StoppedByEndpoint(error.detail)
        if error.fatal:
            raise StoppedByEndpoint(error.detail)
        if (error.retry_after or 0) > LONGEST_RETRY_AFTER_SECONDS:
            hours = (error.retry_after or 0) / 3600
            raise StoppedByEndpoint(f"the endpoint asks to wait {hours:.1f} hours ({error.detail}); run again then")
        if error.transient and error.reason != FAULT and not is_over:
            return None
        return Failure(key=key, reason=error.reason, detail=error.detail, transient=error.transient, attempts=attempt)

    async def _fail(self, failure: Failure, request: Request, endpoint: Endpoint) -> Failure:
        self._tally.failed += 1
        if not failure.transient:
            self._failed[failure.key] = failure
        await _committed(self._journal.fail(failure, request, endpoint, stage=self._stage))
        return failure

    async def _keep(self, key: str, request: Request, endpoint: Endpoint, reply: Reply) -> Completion:
        """Commit an answer, then hand it on."""
        completion = Completion(
            key=key,
            text=reply.text.encode("utf-8", "replace").decode("utf-8"),  # half a surrogate pair fits in no file
            finish=reply.finish,
            usage=reply.usage,
            raw=reply.raw,
            loglikelihood=reply.loglikelihood,
        )
        await _committed(self._journal.keep(completion, request, endpoint, stage=self._stage))
        self._reached.add(request.role)
        if reply.usage is not None:
            self._tally.prompt_tokens += reply.usage.prompt_tokens
            self._tally.completion_tokens += reply.usage.completion_tokens
        return completion

    async def _sleep(self, seconds: float) -> None:
        """Wait without a slot; a stop ends the wait."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise Stopping


async def _sent(provider: Provider, request: Request) -> Reply:
    try:
        return await provider.send(request)
    except (ProviderError, DistillError):
        raise
    except Exception as error:  # a provider that breaks is a failed send, on record
        raise ProviderError(FAULT, f"{type(error).__name__}: {error}", transient=True) from error


async def _committed(write: Future[int]) -> None:
    await asyncio.wrap_future(write)
