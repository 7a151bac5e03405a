"""The provider interface: one seam between the engine and a model, wherever the model runs.

A provider binds a role to one endpoint. It sends each request once; the engine waits, retries and counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from distill import errors
from distill.core.redaction import strike
from distill.core.surrogates import mended
from distill.engine.providers.rate_limit_headers import RateLimitReport
from distill.types import Endpoint, Finish, Request, Usage

DETAIL_CHARACTERS = 300
"""Longest detail line of a failure."""
WORDS_CHARACTERS = 70
"""Longest message in a progress line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer from a provider, before it is journalled."""

    text: str = ""
    finish: Finish = "stop"
    usage: Usage | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The response body, whole, without secrets."""
    raw_json: str | None = field(default=None, repr=False, compare=False)
    """The same as JSON, where the provider has it."""
    loglikelihood: float | None = None
    """For `kind="likelihood"`: nats, end token excluded."""
    report: RateLimitReport | None = None
    """Rate limits as the endpoint reported them."""


class ProviderError(Exception):
    """A send that brought no answer, and why.

    `transient`: asking again may help. `retry_after`: seconds the endpoint asked to wait. `fatal`: no request to this
    endpoint can succeed, so that the run stops; with a `reply`, the endpoint's words alone, it stops only where the
    endpoint's other responses do not show the contrary. `hint`: what to do, at the end of `detail`. `busy`: the
    endpoint rejected the request for load (HTTP 429, 503). `report`: the rate limits that it reported. The reason
    `refused` means that no connection could be made at all. Known secrets are struck out of `detail` and `reply`.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        transient: bool = False,
        retry_after: float | None = None,
        fatal: bool = False,
        reply: str = "",
        hint: str = "",
        busy: bool = False,
        report: RateLimitReport | None = None,
    ) -> None:
        self.reason = reason
        self.detail = one_line(f"{detail}; {hint}" if hint else detail)
        self.words = one_line(f"{one_line(reply or detail, WORDS_CHARACTERS)}{'; ' if hint else ''}{hint}")
        """The error in a few words, for a progress line."""
        super().__init__(self.detail)
        self.transient = transient
        self.retry_after = retry_after
        self.fatal = fatal
        self.reply = one_line(reply)
        self.busy = busy
        self.report = report


class Provider(Protocol):
    """Interface between the engine and an endpoint.

    One with an attribute `is_ours` that is true runs on this machine for this run alone: sends to it may be given up.
    """

    @property
    def endpoint(self) -> Endpoint:
        """The identity that enters every key; the same before and after the first send."""

    async def send(self, request: Request) -> Reply:
        """Ask once. Raises `ProviderError`, or a `DistillError` that stops the run as it is."""

    async def close(self) -> None:
        """Release what belongs to the running event loop, such as connections; the next send opens it again.

        The engine calls it at the end of every run. A server process that outlives a run is stopped elsewhere.
        """


def one_line(text: str, limit: int = DETAIL_CHARACTERS) -> str:
    """The text without known secrets on one line of at most `limit` characters, encodable as UTF-8."""
    return errors.one_line(mended(strike(text)), limit)
