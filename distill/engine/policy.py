"""Endpoints as the engine uses them, request policy, and the state of one request in flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from distill.engine import Tally
from distill.engine.budget import TokenPrice
from distill.engine.journal.keys import Question
from distill.engine.journal.records import Bill, Statement
from distill.engine.providers import Provider, ProviderError, Reply
from distill.engine.rate_limits import Limiter, Rates
from distill.engine.retry import RetryPolicy
from distill.errors import DistillError
from distill.types import Request

REFUSALS = 4
"""Sends of one request without a connection, after which an endpoint that never answered counts as unreachable."""
FAULT = "error"
"""The reason of a provider's own fault: not asked again in this run, for it may have been paid."""
BYTES_A_TOKEN = 4
"""Of English, about; for expected tokens only, never for money."""
EXPECTED_TOKENS = 256
"""Of an answer, before the first one and without a bound."""
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
    """Requests in flight to an endpoint whose rates do not say."""
    retries: RetryPolicy
    retry_failed: bool
    stage: str
    on_miss: Callable[[str, Question], None] | None
    """Called with a flow's name and its first question without an answer in the journal; nothing is sent then."""


@dataclass(slots=True)
class OpenQuestion:
    """One question being sent to its endpoint."""

    question: Question
    name: str
    provider: Provider
    limiter: Limiter
    most: Bill
    unsettled: list[Statement] = field(default_factory=list)
    """How its failed sends ended; written with the next thing that is."""
    sends: int = 0


async def reply_of(provider: Provider, request: Request) -> Reply:
    """The reply of a provider. A fault of the provider itself is a failed send, on record."""
    try:
        return await provider.send(request)
    except (ProviderError, DistillError):
        raise
    except Exception as error:  # a provider of others may raise anything; it was perhaps paid, so it goes on record
        raise ProviderError(FAULT, f"{type(error).__name__}: {error}", transient=True) from error


def expected_tokens(most: Bill, tally: Tally, in_flight: int) -> float:
    """Of a send, for the endpoint's tokens per minute: a quarter of the prompt's bytes, and what answers took."""
    prompt = (most.prompt_tokens or 0) / BYTES_A_TOKEN
    answers = tally.asked - tally.failed - in_flight
    if answers > 0 and tally.completion_tokens:
        return prompt + tally.completion_tokens / answers
    return prompt + min(EXPECTED_TOKENS, most.completion_tokens or EXPECTED_TOKENS)
