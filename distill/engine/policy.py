"""Endpoints as the engine uses them, request policy, and the state of one request in flight."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from distill.core.surrogates import mended
from distill.engine import StoppedByEndpoint, Tally
from distill.engine.budget import TokenPrice
from distill.engine.journal.keys import Question
from distill.engine.journal.records import Bill, Change, Statement
from distill.engine.journal.store import Journal
from distill.engine.providers import Provider, ProviderError, Reply
from distill.engine.rate_limits import Limiter, Rates
from distill.engine.retry import RetryPolicy
from distill.errors import DistillError, RecipeError
from distill.types import Completion, Endpoint, Failure, Request

REFUSALS = 4
"""Refused connections for one request after which an endpoint that never answered counts as unreachable."""
FAULT = "error"
"""The reason of an exception inside a provider: not sent again in this run, as it may have been billed."""
BYTES_A_TOKEN = 4
"""Approximate bytes of English text per token; for expected tokens only, never for cost bounds."""
EXPECTED_TOKENS = 256
"""Expected tokens of an unbounded answer before the first one has come."""
JUDGED = 20
"""Last responses of an endpoint by which its refusals are judged, and first ones that may not all fail alike."""
NOT_SENT = ProviderError("refused", "nothing was sent")


class SenderStopping(Exception):
    """Raised in tasks that wait for an answer when no more requests are sent."""


@dataclass(frozen=True, slots=True)
class BoundEndpoint:
    """A provider with the limits and the price that a recipe gives it."""

    provider: Provider
    rates: Rates = field(default_factory=Rates)
    price: TokenPrice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPolicy:
    """Settings of an engine's requests."""

    concurrency: int
    """Requests in flight to an endpoint whose rates do not limit them."""
    retries: RetryPolicy
    retry_failed: bool
    stage: str
    on_miss: Callable[[str, Question], None] | None
    """Called with a flow's name and its first question without an answer in the journal; where it is set, nothing is
    sent."""


class Standing:
    """What an endpoint's responses say of it as a whole. Belongs to one event loop.

    A refusal that may concern every request (of the key, the credit, the model, the address) counts as one of the
    endpoint where it has never answered and nothing in flight beside it is answered, or where most of its last
    responses were such refusals.
    """

    def __init__(self) -> None:
        self.has_answered = False
        self.in_flight = 0
        self.first: list[Failure] | None = []
        """Its responses as long as all were permanent failures with the same words, else `None`."""
        self._refusals: deque[bool] = deque(maxlen=JUDGED)
        self._is_certain = asyncio.Event()
        self._is_certain.set()

    def ended(self, error: BaseException | None) -> None:
        """Count a send that ended with this error, or with an answer."""
        self.in_flight -= 1
        if error is None:
            self.has_answered, self.first = True, None
        if error is None or (isinstance(error, ProviderError) and not error.transient):
            self._refusals.append(error is not None and bool(error.reply))
        if isinstance(error, ProviderError) and error.reply and not self.has_answered:
            self._is_certain.clear()
        if self.has_answered or not self.in_flight:
            self._is_certain.set()

    async def certain(self) -> None:
        """Wait until a request in flight beside a refused one is answered, or none is left."""
        if not self._is_certain.is_set():
            await self._is_certain.wait()

    async def judge(self, refusal: ProviderError, journal: Journal, endpoint: Endpoint) -> None:
        """Return where a refusal concerns its request alone. Raises `StoppedByEndpoint` where it concerns all."""
        if not self.has_answered and journal.has_answer_of(endpoint):
            self.has_answered = True
            self._is_certain.set()
        await self.certain()
        if not self.has_answered or 2 * sum(self._refusals) > JUDGED:
            raise StoppedByEndpoint(refusal.detail)

    def fails_alike(self, failure: Failure) -> bool:
        """Whether this permanent failure is the last of the first `JUDGED` responses, and all were alike."""
        if self.first is None:
            return False
        self.first.append(failure)
        if _likeness(failure) != _likeness(self.first[0]):
            self.first = None
        return self.first is not None and len(self.first) >= JUDGED


def _likeness(failure: Failure) -> tuple[str, str]:
    """What two failures of one cause have in common: the words without quotations and numbers."""
    return failure.reason, re.sub(r"""(["'`]).*?\1|\S*\d\S*""", "", failure.detail)


@dataclass(slots=True)
class OpenQuestion:
    """One question being sent to its endpoint."""

    question: Question
    name: str
    provider: Provider
    limiter: Limiter
    standing: Standing
    most: Bill
    unsettled: list[Statement] = field(default_factory=list)
    """Outcomes of its failed sends, written with the next change."""
    sends: int = 0
    intent: Change = ()
    """That of its last send."""


async def reply_of(provider: Provider, request: Request) -> Reply:
    """A provider's reply. Any exception of the provider itself becomes a `ProviderError`."""
    try:
        return await provider.send(request)
    except (ProviderError, DistillError):
        raise
    except Exception as error:  # a user's provider may raise anything, and the send may have been billed
        raise ProviderError(FAULT, f"{type(error).__name__}: {error}", transient=True) from error


class Sends:
    """The sends in flight; those to servers of our own (`Provider.is_ours`) can be abandoned, for they cost nothing."""

    def __init__(self) -> None:
        self._ours: set[asyncio.Future[Reply]] = set()
        self._is_abandoned = False

    async def reply(self, provider: Provider, request: Request) -> Reply:
        """As `reply_of`. Raises `SenderStopping` where the send is abandoned."""
        if not getattr(provider, "is_ours", False):
            return await reply_of(provider, request)
        task = asyncio.ensure_future(reply_of(provider, request))
        self._ours.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._is_abandoned:
                raise SenderStopping from None
            raise
        finally:
            self._ours.discard(task)

    async def abandon(self) -> int:
        """Cancel the sends to our own servers; returns their number."""
        self._is_abandoned, tasks = True, list(self._ours)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        return len(tasks)


def completion_of(key: str, reply: Reply) -> Completion:
    """The answer to be journalled; half surrogate pairs, which no file can hold, are replaced."""
    return Completion(
        key=key,
        text=mended(reply.text),
        finish=reply.finish,
        usage=reply.usage,
        raw=reply.raw,
        loglikelihood=reply.loglikelihood,
    )


def missing_role(name: str, known: Iterable[str]) -> RecipeError:
    """The error for a role that no model plays."""
    return RecipeError(f'no model for the role "{name}"; add it to the recipe (there is: {", ".join(sorted(known))})')


def expected_tokens(most: Bill, tally: Tally, in_flight: int) -> float:
    """Expected tokens of a send, for a limit of tokens per minute: the prompt's, and the mean of an answer's."""
    prompt = (most.prompt_tokens or 0) / BYTES_A_TOKEN
    answers = tally.asked - tally.failed - in_flight
    if answers > 0 and tally.completion_tokens:
        return prompt + tally.completion_tokens / answers
    return prompt + min(EXPECTED_TOKENS, most.completion_tokens or EXPECTED_TOKENS)
