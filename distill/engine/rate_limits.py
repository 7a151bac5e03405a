"""One limiter per endpoint and key; combines all rate-limit signals.

It obeys each of these: the recipe's concurrency, its requests and tokens per minute, the remaining quota in the
endpoint's headers, Retry-After, the share of rejected requests (for endpoints that state no limit), and a breaker.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from distill.engine.backpressure import BREAKER_FIRST_SECONDS, Breaker, Concurrency, SendOutcome, Ticket
from distill.engine.providers.rate_limit_headers import RateLimitReport, RemainingQuota

BURST_SECONDS = 1.0
"""Requests of so many seconds may leave at once: providers quantise a limit by the minute to seconds or less."""
HOLD_SHARE = 0.25
"""Retry-After holds the whole endpoint when so much of a window carries one; else its own request alone."""
LEAST_WINDOW, MOST_WINDOW = 8, 1000
"""A window is as many answers as may be in flight, within these."""


class LimiterClosed(Exception):
    """Raised in tasks that wait for a slot when no more requests are sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Limits that a recipe sets for an endpoint; `None` is no limit."""

    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


class Pace:
    """Evenly spaced units per minute with a burst of one second's worth: generic cell rate algorithm (ITU-T I.371).

    `least` units always fit at once. No minute holds more than its limit, but for one send that alone is larger.
    """

    def __init__(self, per_minute: float, *, least: float = 1.0) -> None:
        self._burst = max(least, per_minute * BURST_SECONDS / 60)
        self._per_second = (per_minute - self._burst + least) / 60
        self._used = 0.0
        self._at = -math.inf

    def wait_seconds(self, units: float, now: float) -> float:
        """Until so many units may be spent; more than a burst waits for an unused one and goes into debt."""
        over = self._level(now) + min(units, self._burst) - self._burst
        return max(0.0, over / self._per_second) if over > 1e-9 else 0.0

    def spend(self, units: float, now: float) -> None:
        """Count them, or give them back where negative."""
        self._used = max(0.0, self._level(now) + units)
        self._at = now

    def _level(self, now: float) -> float:
        return max(0.0, self._used - (now - self._at) * self._per_second) if self._at > -math.inf else 0.0


class Remainder:
    """Remaining quota by the endpoint's headers, minus what was sent since."""

    def __init__(self) -> None:
        self._left: float | None = None
        self._limit: float | None = None
        self._reset = 0.0
        self._heard = -1

    def hear(self, left: RemainingQuota, ticket: Ticket, now: float) -> None:
        """Take the report of the latest send; an earlier one's, arriving late, is stale."""
        if ticket.number < self._heard or left.reset_seconds is None:
            return
        self._heard = ticket.number
        self._left, self._limit = left.amount, left.limit
        self._reset = now + left.reset_seconds

    def wait_seconds(self, units: float, now: float) -> float:
        """Until the reset, where not enough is left."""
        if self._left is None or self._left >= min(units, self._limit or units):
            return 0.0
        if now >= self._reset:
            self._left = self._limit
            return 0.0
        return self._reset - now

    def spend(self, units: float) -> None:
        """Count what leaves now."""
        if self._left is not None:
            self._left -= units


@dataclass(slots=True)
class _Waiter:
    future: asyncio.Future[Ticket]
    tokens: float


class Limiter:
    """Issues tickets and adapts to their outcomes. Belongs to one event loop.

    Requests asked again wait in a lane of their own, which takes turns with the first tries.
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
        self._requests = Pace(rates.requests_per_minute) if rates.requests_per_minute else None
        self._tokens = Pace(rates.tokens_per_minute, least=0.0) if rates.tokens_per_minute else None
        self._requests_left, self._tokens_left = Remainder(), Remainder()
        self._clock = clock
        self._first: deque[_Waiter] = deque()
        self._again: deque[_Waiter] = deque()
        self._turn_of_again = True
        self._held: deque[bool] = deque()
        self._hold_until = 0.0
        self._number = self._sent_when_held = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.bound_by = ""
        """What the last wait was for, in a few words."""

    async def enter(self, tokens: float, *, again: bool = False) -> Ticket:
        """Wait for the right to send. Raises `LimiterClosed` when nothing more is sent."""
        if self._closed:
            raise LimiterClosed
        if not self._first and not self._again and self.wait_seconds(tokens) == 0:
            return self._ticket(tokens)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), tokens)
        (self._again if again else self._first).append(waiter)
        self._pump()
        return await waiter.future

    def is_healthy(self) -> bool:
        """Whether the endpoint answers most of what it is asked, and is not overloaded."""
        low = self.concurrency.limit < self.concurrency.most
        return not (low or self.breaker.is_doubtful() or self._clock() < self._hold_until)

    def leave(
        self,
        ticket: Ticket,
        came: SendOutcome,
        *,
        used: float | None = None,
        report: RateLimitReport | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Give a ticket back. `used` tokens as reported. Raises `EndpointError` when the endpoint stays down."""
        now = self._clock()
        self.in_flight -= 1
        self._hear(ticket, report, used, now)
        in_use = self.in_flight + 1 + len(self._first) + len(self._again)
        silent = came is SendOutcome.BUSY and retry_after is None and not _says_empty(report)
        self.concurrency.note(ticket, busy=silent, latest=self._number, in_use=in_use)
        self._hold(ticket, retry_after if came is SendOutcome.BUSY else None, now)
        try:
            self.breaker.note(ticket, came, now)
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
        """Hold everybody when a quarter of the last window was told to wait."""
        window = max(LEAST_WINDOW, min(int(self.concurrency.limit), MOST_WINDOW))
        self._held.append(retry_after is not None)
        while len(self._held) > window:
            self._held.popleft()
        if retry_after is None or sum(self._held) < HOLD_SHARE * window:
            return
        if now >= self._hold_until and ticket.number <= self._sent_when_held + window and self._sent_when_held:
            self.concurrency.shrink()  # held again right after a hold: it is not only the rate
        self._hold_until = max(self._hold_until, now + retry_after)
        self._sent_when_held = self._number

    def close(self) -> None:
        """Nothing more is sent: whoever waits is told."""
        self._closed = True
        for waiter in (*self._first, *self._again):
            if not waiter.future.done():
                waiter.future.set_exception(LimiterClosed())
        self._first.clear()
        self._again.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _pump(self) -> None:
        """Let go whoever may go; look again when the first of the others may."""
        while lane := self._lane():
            waiter = lane[0]
            if waiter.future.done():
                lane.popleft()
                continue
            wait = self.wait_seconds(waiter.tokens)
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
        """0 to go, infinite to wait for somebody to come back, else how long at least; notes what it is for."""
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
        wait, bound = 0.0, ""
        if self._requests is not None and (seconds := self._requests.wait_seconds(1, now)) > wait:
            wait, bound = seconds, "requests per minute"
        if self._tokens is not None and (seconds := self._tokens.wait_seconds(tokens, now)) > wait:
            wait, bound = seconds, "tokens per minute"
        if (seconds := self._requests_left.wait_seconds(1, now)) > wait:
            wait, bound = seconds, "requests left by the headers"
        if (seconds := self._tokens_left.wait_seconds(tokens, now)) > wait:
            wait, bound = seconds, "tokens left by the headers"
        self.bound_by = bound or self.bound_by
        return wait

    def _ticket(self, tokens: float) -> Ticket:
        now = self._clock()
        self.in_flight += 1
        self._number += 1
        if self._requests is not None:
            self._requests.spend(1, now)
        if self._tokens is not None:
            self._tokens.spend(tokens, now)
        self._requests_left.spend(1)
        self._tokens_left.spend(tokens)
        trial = self.breaker.until is not None
        if trial:
            self.breaker.on_trial = True
        return Ticket(self._number, tokens, trial)

    def describe(self) -> str:
        """The limit now and what sets it, such as `limit 24 of 32 (turned away)` or `waiting 4 s (Retry-After)`."""
        now = self._clock()
        until = max(self._hold_until, self.breaker.until or 0.0)
        if until > now:
            return f"waiting {until - now:.0f} s ({'errors' if self.breaker.until is not None else 'Retry-After'})"
        if self.bound_by in {"", "concurrency", "Retry-After", "errors"}:
            return f"limit {int(self.concurrency.limit)}"
        if self.bound_by == "turned away":
            return f"limit {int(self.concurrency.limit)} of {self.concurrency.most} (turned away)"
        return f"limited by {self.bound_by}"


def _says_empty(report: RateLimitReport | None) -> bool:
    """Whether the headers explain why a request was turned away."""
    lefts = [] if report is None else [report.requests, report.tokens]
    return any(left is not None and left.amount < 1 and left.reset_seconds is not None for left in lefts)
