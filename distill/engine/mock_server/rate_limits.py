"""Rate limits like those of providers: sliding windows, their headers, and HTTP 429 beyond."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.engine.mock_server.faults import Fault, error_body, question, status

UNSET_MAX_TOKENS = 16
"""Tokens that an answer counts for where its request gives no bound; the old default of /completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """Limits per `per_seconds`; a request over a limit gets a 429 and is not counted.

    A request's tokens are the words of its question plus the bound of its answer (`max_tokens`).
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    per_seconds: float = 60.0
    """The length of a minute; shorter for tests."""
    headers: bool = True
    """Whether every response says x-ratelimit-limit-, -remaining- and -reset-."""
    retry_after: bool = True
    """Whether a 429 says Retry-After, in whole seconds, rounded up."""


class _Window:
    """One sliding-window limit: requests admitted in the last `seconds`."""

    def __init__(self, name: str, limit: int, seconds: float) -> None:
        self.name = name
        self.limit = limit
        self.used = 0
        self._seconds = seconds
        self._requests: deque[tuple[float, int]] = deque()

    def wait_seconds(self, amount: int, now: float) -> float:
        """Seconds until this amount fits; infinite where it never will."""
        self._forget(now)
        over = self.used + amount - self.limit
        if over <= 0:
            return 0.0
        for at, taken in self._requests:
            over -= taken
            if over <= 0:
                return at + self._seconds - now
        return math.inf

    def take(self, amount: int, now: float) -> None:
        """Count an admitted request."""
        self._requests.append((now, amount))
        self.used += amount

    def headers(self, now: float) -> dict[str, str]:
        """The limit, its remainder, and the time until it is whole again."""
        self._forget(now)
        reset = self._requests[-1][0] + self._seconds - now if self._requests else 0.0
        values = {"limit": self.limit, "remaining": self.limit - self.used, "reset": header_duration(reset)}
        return {f"x-ratelimit-{value}-{self.name}": str(reply) for value, reply in values.items()}

    def _forget(self, now: float) -> None:
        while self._requests and self._requests[0][0] + self._seconds <= now:
            self.used -= self._requests.popleft()[1]


def header_duration(seconds: float) -> str:
    """In the form of rate-limit headers: `120ms`, `1s`, `6m0s`, `1h0m0s`; rounded up to a millisecond."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    reply = f"{rest / 1000:g}s"
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60}m{reply}"
    return f"{minutes}m{reply}" if minutes else reply


class RateLimitGate:
    """The limits of one server."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        most = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        self._windows = [_Window(name, n, limits.per_seconds) for name, n in most.items() if n is not None]

    def refusal(self, body: Mapping[str, Any]) -> Fault | None:
        """The 429 for a request that does not fit; one that does is counted."""
        if not self._windows:
            return None
        now = time.monotonic()
        amounts = {"requests": 1, "tokens": _tokens(body)}
        waits = [(window.wait_seconds(amounts[window.name], now), window) for window in self._windows]
        wait, window = max(waits, key=lambda pair: pair[0])
        if wait > 0:
            return self._refuse(window, wait)
        for window in self._windows:
            window.take(amounts[window.name], now)
        return None

    def _refuse(self, window: _Window, wait: float) -> Fault:
        again = "It is larger than the limit." if wait == math.inf else f"Please try again in {header_duration(wait)}."
        reply = f"Rate limit reached on {window.name} per min: Limit {window.limit}, Used {window.used}. {again}"
        info = self._limits.retry_after and wait < math.inf
        headers = {"Retry-After": str(math.ceil(wait))} if info else {}
        return status(429, headers, error_body(reply, window.name, "rate_limit_exceeded"))

    def headers(self) -> dict[str, str]:
        """The rate-limit headers of every response."""
        if not self._limits.headers:
            return {}
        now = time.monotonic()
        return {name: reply for window in self._windows for name, reply in window.headers(now).items()}


def _tokens(body: Mapping[str, Any]) -> int:
    bound = body.get("max_tokens") or body.get("max_completion_tokens") or UNSET_MAX_TOKENS
    return len(question(body).split()) + int(bound)
