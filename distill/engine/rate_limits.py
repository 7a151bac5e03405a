"""One limiter per endpoint and key; combines all rate-limit signals.

The signals: the recipe's concurrency and its requests and tokens per minute, the remaining quota in the endpoint's
headers, Retry-After, the share of rejected requests (for endpoints that state no limit), and a circuit breaker.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from distill.core.console import duration
from distill.engine.backpressure import BREAKER_FIRST_SECONDS, Breaker, Concurrency, SendOutcome, Ticket
from distill.engine.providers.rate_limit_headers import RateLimitReport, RemainingQuota
from distill.errors import EndpointError

BURST_SECONDS = 1.0
"""Seconds' worth of requests that may be sent at once: providers quantise a limit per minute to seconds or less."""
HOLD_SHARE = 0.25
"""Share of a window's answers with Retry-After from which all requests are held; below it, only those that got one."""
LEAST_WINDOW, MOST_WINDOW = 8, 1000
"""A window is as many answers as requests may be in flight, within these bounds."""


REQUESTS_LEFT, TOKENS_LEFT = "requests left by the headers", "tokens left by the headers"
LONGEST_WAIT_SECONDS = 3600.0
"""An endpoint that asks for a longer wait, by whatever header, stops the run instead."""


class LimiterClosed(Exception):
    """Raised in tasks that wait for a ticket when no more requests are sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Limits that a recipe sets for an endpoint; `None` is no limit."""

    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


class Pace:
    """Evenly spaced units per minute with a burst of one second's worth: generic cell rate algorithm (ITU-T I.371).

    `least` units always fit at once. No minute holds more than its limit, but for a single send that is larger.
    """

    def __init__(self, per_minute: float, *, least: float = 1.0) -> None:
        self._burst = max(least, per_minute * BURST_SECONDS / 60)
        self._per_second = (per_minute - self._burst + least) / 60
        self._used = 0.0
        self._at = -math.inf

    def wait_seconds(self, units: float, now: float) -> float:
        """Seconds until `units` may be spent; more than a burst waits for a whole burst and goes into debt."""
        over = self._level(now) + min(units, self._burst) - self._burst
        return max(0.0, over / self._per_second) if over > 1e-9 else 0.0

    def spend(self, units: float, now: float) -> None:
        """Count units as spent, or as given back where negative."""
        self._used = max(0.0, self._level(now) + units)
        self._at = now

    def _level(self, now: float) -> float:
        return max(0.0, self._used - (now - self._at) * self._per_second) if self._at > -math.inf else 0.0


class Remainder:
    """Remaining quota as the endpoint's headers report it, minus what was sent since."""

    def __init__(self) -> None:
        self._amount: float | None = None
        self._limit: float | None = None
        self._reset = 0.0
        self._latest = -1

    def hear(self, quota: RemainingQuota, ticket: Ticket, now: float) -> None:
        """Take the report of the latest send; that of an earlier send, arriving late, is stale."""
        if ticket.number < self._latest or quota.reset_seconds is None:
            return
        self._latest = ticket.number
        self._amount, self._limit = quota.amount, quota.limit
        self._reset = now + quota.reset_seconds

    def wait_seconds(self, units: float, now: float) -> float:
        """Seconds until the reset, where not enough is left."""
        if self._amount is None or self._amount >= min(units, self._limit or units):
            return 0.0
        if now >= self._reset:
            self._amount = self._limit
            return 0.0
        return self._reset - now

    def spend(self, units: float, now: float) -> None:
        """Count units as sent."""
        if self._amount is not None:
            self._amount -= units


@dataclass(slots=True)
class _Waiter:
    future: asyncio.Future[Ticket]
    tokens: float


class Limiter:
    """Issues tickets and adapts to their outcomes. Belongs to one event loop.

    Retries wait in a lane of their own, which takes turns with the lane of first tries.
    """

    def __init__(
        self,
        rates: Rates,
        *,
        clock: Callable[[], float] = time.monotonic,
        breaker_seconds: float = BREAKER_FIRST_SECONDS,
    ) -> None:
        self.rates = rates
        self.in_flight = 0
        self.concurrency = Concurrency(rates.concurrency or 2**31)
        self.breaker = Breaker(breaker_seconds)
        self._tokens = Pace(rates.tokens_per_minute, least=0.0) if rates.tokens_per_minute else None
        self._requests_left, self._tokens_left = Remainder(), Remainder()
        self._limits: list[tuple[str, bool, Pace | Remainder]] = [
            (REQUESTS_LEFT, False, self._requests_left),
            (TOKENS_LEFT, True, self._tokens_left),
        ]
        """Each with its name and whether it counts tokens; otherwise it counts requests."""
        if rates.requests_per_minute:
            self._limits.append(("requests per minute", False, Pace(rates.requests_per_minute)))
        if self._tokens is not None:
            self._limits.append(("tokens per minute", True, self._tokens))
        self._clock = clock
        self._first: deque[_Waiter] = deque()
        self._again: deque[_Waiter] = deque()
        self._turn_of_again = True
        self._waits: deque[bool] = deque()
        self._hold_until = 0.0
        self._number = self._sent_when_held = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.bound_by = ""
        """The reason of the last wait, in a few words."""

    async def enter(self, tokens: float, *, again: bool = False) -> Ticket:
        """Wait for the permission to send.

        Raises `LimiterClosed` when nothing more is sent, and `EndpointError` where the endpoint's headers ask to wait
        over an hour.
        """
        if self._closed:
            raise LimiterClosed
        if not self._first and not self._again and self.wait_seconds(tokens) == 0:
            return self._ticket(tokens)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), tokens)
        (self._again if again else self._first).append(waiter)
        self._pump()
        return await waiter.future

    def is_healthy(self) -> bool:
        """Whether the endpoint answers most requests and is not overloaded."""
        low = self.concurrency.limit < self.concurrency.most
        return not (low or self.breaker.is_doubtful() or self._clock() < self._hold_until)

    def leave(
        self,
        ticket: Ticket,
        outcome: SendOutcome,
        *,
        used: float | None = None,
        report: RateLimitReport | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Give a ticket back. `used` are tokens as reported. Raises `EndpointError` when the endpoint stays down."""
        now = self._clock()
        self.in_flight -= 1
        self._hear(ticket, report, used, now)
        in_use = self.in_flight + 1 + len(self._first) + len(self._again)
        is_busy = outcome is SendOutcome.BUSY
        unexplained = is_busy and retry_after is None and not _says_empty(report)
        self.concurrency.note(ticket, busy=unexplained, latest=self._number, in_use=in_use)
        self._hold(ticket, retry_after if is_busy else None, now)
        try:
            self.breaker.note(ticket, outcome, now)
        finally:
            if self._first or self._again:
                self._pump()

    def _hear(self, ticket: Ticket, report: RateLimitReport | None, used: float | None, now: float) -> None:
        if self._tokens is not None and used is not None:
            self._tokens.spend(used - ticket.tokens, now)
        if report is not None and report.requests is not None:
            self._requests_left.hear(report.requests, ticket, now)
        if report is not None and report.tokens is not None:
            self._tokens_left.hear(report.tokens, ticket, now)

    def _hold(self, ticket: Ticket, retry_after: float | None, now: float) -> None:
        """Hold all requests when a quarter of the last window's answers had a Retry-After."""
        window = max(LEAST_WINDOW, min(int(self.concurrency.limit), MOST_WINDOW))
        self._waits.append(retry_after is not None)
        while len(self._waits) > window:
            self._waits.popleft()
        if retry_after is None or sum(self._waits) < HOLD_SHARE * window:
            return
        if now >= self._hold_until and ticket.number <= self._sent_when_held + window and self._sent_when_held:
            self.concurrency.shrink()  # held again right after a hold: waiting alone does not help
        self._hold_until = max(self._hold_until, now + retry_after)
        self._sent_when_held = self._number

    def close(self) -> None:
        """Send nothing more: all waiting requests raise `LimiterClosed`."""
        self._closed = True
        for waiter in (*self._first, *self._again):
            if not waiter.future.done():
                waiter.future.set_exception(LimiterClosed())
        self._first.clear()
        self._again.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _pump(self) -> None:
        """Issue tickets to all requests that may be sent, and schedule the next look."""
        while lane := self._lane():
            waiter = lane[0]
            if waiter.future.done():
                lane.popleft()
                continue
            wait = self.wait_seconds(waiter.tokens)
            if wait > LONGEST_WAIT_SECONDS and self.bound_by in (REQUESTS_LEFT, TOKENS_LEFT):
                lane.popleft()
                waiter.future.set_exception(too_long(wait, self.bound_by))
                continue
            if wait > 0:
                if wait < math.inf:
                    self._look_again_in(wait)
                return
            lane.popleft()
            self._turn_of_again = lane is self._first
            waiter.future.set_result(self._ticket(waiter.tokens))

    def _lane(self) -> deque[_Waiter]:
        if self._first and self._again:
            return self._again if self._turn_of_again else self._first
        return self._again or self._first

    def _look_again_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds + 1e-3, self._pump)

    def wait_seconds(self, tokens: float) -> float:
        """Seconds until a request may be sent; infinite if another must end first. Notes the reason in `bound_by`."""
        if self.in_flight >= int(self.concurrency.limit):
            low = self.concurrency.limit < self.concurrency.most
            self.bound_by = "turned away" if low else "concurrency"
            return math.inf
        now = self._clock()
        if self.breaker.until is not None:
            self.bound_by = "errors"
            return math.inf if self.breaker.on_trial else max(0.0, self.breaker.until - now)
        if now < self._hold_until:
            self.bound_by = "Retry-After"
            return self._hold_until - now
        wait = 0.0
        for name, counts_tokens, limit in self._limits:
            if (seconds := limit.wait_seconds(tokens if counts_tokens else 1, now)) > wait:
                wait, self.bound_by = seconds, name
        return wait

    def _ticket(self, tokens: float) -> Ticket:
        now = self._clock()
        self.in_flight += 1
        self._number += 1
        for _, counts_tokens, limit in self._limits:
            limit.spend(tokens if counts_tokens else 1, now)
        self.breaker.on_trial = self.breaker.until is not None
        return Ticket(self._number, tokens, self.breaker.on_trial)

    def describe(self) -> str:
        """The limit now and what sets it, such as `limit 24 of 32 (turned away)` or `waiting 4 s (Retry-After)`."""
        waiter = next(iter(self._first or self._again), None)
        wait = self.wait_seconds(waiter.tokens if waiter else 1.0)
        if self.breaker.on_trial:
            return "waiting for a trial request (errors)"
        if 1 <= wait < math.inf:
            return f"waiting {f'{wait:.0f} s' if wait < 60 else duration(wait)} ({self.bound_by})"
        if self.bound_by == "turned away":
            return f"limit {int(self.concurrency.limit)} of {self.concurrency.most} (turned away)"
        return f"limited by {self.bound_by}" if 0 < wait < 1 else f"limit {int(self.concurrency.limit)}"


def too_long(wait_seconds: float, reason: str) -> EndpointError:
    """The error for an endpoint that asks to wait over an hour."""
    return EndpointError(f"the endpoint asks to wait {wait_seconds / 3600:.1f} hours ({reason}); run again then")


def _says_empty(report: RateLimitReport | None) -> bool:
    """Whether the headers explain why a request was rejected."""
    quotas = [] if report is None else [report.requests, report.tokens]
    return any(quota is not None and quota.amount < 1 and quota.reset_seconds is not None for quota in quotas)
