"""Circuit breaker and adaptive concurrency for one endpoint."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from distill.engine.providers import ProviderError
from distill.errors import EndpointError

SHRINK_SHARE = 0.25
"""Share of rejected requests in a round trip from which the limit shrinks; retries absorb fewer."""
GROW_SHARE = 1 / 16
"""Share of rejected requests in a round trip up to which the limit grows."""
GROWTH, FAST_GROWTH, MOST_SHRINK = 1.05, 1.5, 0.5
"""Growth per round trip, growth below the level that held before, and the smallest factor of a shrink (TCP Reno)."""
BREAKER_WINDOW = 100
"""The breaker looks at this many sends, and opens when over half of them failed."""
BREAKER_FIRST_SECONDS, BREAKER_LONGEST_SECONDS, BREAKER_TRIALS = 5.0, 120.0, 20
"""First and longest pause of the breaker, which doubles, and failed trials (over half an hour in all) after which the
endpoint counts as down."""


@dataclass(slots=True)
class Ticket:
    """Permission for one send, given back with the send's outcome."""

    number: int
    tokens: float
    """Expected tokens of prompt and answer."""
    is_trial: bool = False


class SendOutcome(Enum):
    """Outcome of a send."""

    ANSWER = "answer"
    BUSY = "busy"
    """Rejected for load: HTTP 429 or 503."""
    FAULT = "fault"
    """Another transient failure."""
    REFUSAL = "refusal"
    """A failure caused by the request itself; the endpoint works."""


def outcome_of(error: BaseException | None) -> SendOutcome:
    """The outcome of a send that ended with this error, or with none."""
    if error is None:
        return SendOutcome.ANSWER
    if isinstance(error, ProviderError) and error.transient:
        return SendOutcome.BUSY if error.busy else SendOutcome.FAULT
    return SendOutcome.REFUSAL


class Breaker:
    """Opens when over half of the last 100 sends failed, then allows single trials at growing intervals."""

    def __init__(self, first_seconds: float = BREAKER_FIRST_SECONDS) -> None:
        self._faults: deque[bool] = deque(maxlen=BREAKER_WINDOW)
        self._first_seconds = first_seconds
        self._trials = 0
        self._opened = 0.0
        self.until: float | None = None
        """When the next trial may be sent; `None` while closed."""
        self.on_trial = False

    def note(self, ticket: Ticket, outcome: SendOutcome, now: float) -> None:
        """Count a send's outcome. Raises `EndpointError` when the endpoint stays down."""
        if ticket.is_trial:
            self.on_trial = False
            if outcome is SendOutcome.FAULT:
                self._open(now)
            else:
                self.until, self._trials = None, 0
                self._faults.clear()
            return
        if outcome is not SendOutcome.BUSY and self.until is None:
            self._faults.append(outcome is SendOutcome.FAULT)
            if outcome is SendOutcome.FAULT and sum(self._faults) * 2 > BREAKER_WINDOW:
                self._opened = now
                self._open(now)

    def is_doubtful(self) -> bool:
        """Whether it is open, or at least half of the sends counted have failed."""
        return self.until is not None or sum(self._faults) * 2 >= len(self._faults)

    def _open(self, now: float) -> None:
        if self._trials >= BREAKER_TRIALS:
            minutes = (now - self._opened) / 60
            raise EndpointError(
                f"the endpoint has failed for {minutes:.0f} minutes, and {self._trials} trials since have failed too;"
                " run again when it is back: all answers are kept"
            )
        self.until = now + min(self._first_seconds * 2**self._trials, BREAKER_LONGEST_SECONDS)
        self._trials += 1


class Concurrency:
    """Requests allowed in flight: the recipe's number, reduced while an endpoint rejects some without stating a limit.

    Additive-increase/multiplicative-decrease (Chiu and Jain, 1989) by round trips: a round trip ends with the answer to
    the first request sent after its beginning, and changes the limit at most once. A shrink multiplies by the share
    that was accepted, but at least by a half. Below the level that held before, growth is fast, as in TCP's slow start.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self._level = float(most)
        self._ends_with = 0
        self._sent = self._busy = 0

    def note(self, ticket: Ticket, *, busy: bool, latest: int, in_use: int) -> None:
        """Count a send that ended. `latest` is the number of the last send, `in_use` counts sends and those waiting."""
        self._sent += 1
        self._busy += busy
        if ticket.number < self._ends_with:
            return
        share = self._busy / self._sent
        if share >= SHRINK_SHARE:
            self.limit = max(1.0, self.limit * max(MOST_SHRINK, 1 - share))
            if share < 1:  # the endpoint carries this many; with none accepted it is down, which says nothing
                self._level = self.limit
        elif share <= GROW_SHARE or self.limit < self._level:
            factor = FAST_GROWTH if self.limit < self._level else GROWTH
            if in_use >= self.limit - 1:
                self.limit = min(float(self.most), max(self.limit + 1, self.limit * factor))
        self._ends_with, self._sent, self._busy = latest + 1, 0, 0

    def shrink(self) -> None:
        """Halve, once."""
        self.limit = max(1.0, self.limit * MOST_SHRINK)
