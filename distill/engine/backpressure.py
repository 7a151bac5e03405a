"""Circuit breaker and adaptive concurrency for one endpoint."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from distill.engine.providers import ProviderError
from distill.errors import EndpointError

SHRINK_SHARE = 0.25
"""The limit shrinks when so much of a round trip was turned away; below, it is noise that retries absorb."""
GROW_SHARE = 1 / 16
"""The limit grows while no more of a round trip was turned away."""
GROWTH, FAST_GROWTH, MOST_SHRINK = 1.05, 1.5, 0.5
"""A round trip's growth, that below the level which held before, and the least that a limit keeps (cf. TCP Reno)."""
BREAKER_WINDOW = 100
"""The breaker opens when over half of so many last sends failed."""
BREAKER_FIRST_SECONDS, BREAKER_LONGEST_SECONDS, BREAKER_TRIALS = 5.0, 120.0, 20
"""Its pauses double; after so many trials in vain (over half an hour) the endpoint counts as down."""


@dataclass(slots=True)
class Ticket:
    """Permission for one send; returned with its outcome."""

    number: int
    tokens: float
    """Expected of prompt and answer."""
    is_trial: bool = False


class SendOutcome(Enum):
    """Outcome of a send."""

    ANSWER = "answer"
    BUSY = "busy"
    """Turned away for load: HTTP 429 or 503."""
    FAULT = "fault"
    """Another transient failure."""
    REFUSAL = "refusal"
    """A failure that is the request's own; the endpoint works."""


def outcome_of(error: BaseException | None) -> SendOutcome:
    """What an error, or none, says of the endpoint."""
    if error is None:
        return SendOutcome.ANSWER
    if not isinstance(error, ProviderError):
        return SendOutcome.REFUSAL
    if error.busy:
        return SendOutcome.BUSY
    return SendOutcome.FAULT if error.transient else SendOutcome.REFUSAL


class Breaker:
    """Opens after more than half of the last 100 sends failed; then allows single trials at growing intervals."""

    def __init__(self, first_seconds: float = BREAKER_FIRST_SECONDS) -> None:
        self._faults: deque[bool] = deque(maxlen=BREAKER_WINDOW)
        self._first_seconds = first_seconds
        self._trials = 0
        self._opened = 0.0
        self.until: float | None = None
        """When the next trial may leave; `None` while closed."""
        self.on_trial = False

    def note(self, ticket: Ticket, came: SendOutcome, now: float) -> None:
        """Count a send. Raises `EndpointError` when the endpoint stays down."""
        if ticket.is_trial:
            self.on_trial = False
            if came is SendOutcome.FAULT:
                self._open(now)
            else:
                self.until, self._trials = None, 0
                self._faults.clear()
            return
        if came is not SendOutcome.BUSY and self.until is None:
            self._faults.append(came is SendOutcome.FAULT)
            if came is SendOutcome.FAULT and sum(self._faults) * 2 > BREAKER_WINDOW:
                self._opened = now
                self._open(now)

    def is_doubtful(self) -> bool:
        """Whether it is open, or half of what it has seen has failed."""
        return self.until is not None or sum(self._faults) * 2 >= len(self._faults)

    def _open(self, now: float) -> None:
        if self._trials >= BREAKER_TRIALS:
            minutes = (now - self._opened) / 60
            raise EndpointError(
                f"the endpoint has failed for {minutes:.0f} minutes, and {self._trials} trials since were in vain; run"
                " again when it is back: everything answered is kept"
            )
        self.until = now + min(self._first_seconds * 2**self._trials, BREAKER_LONGEST_SECONDS)
        self._trials += 1


class Concurrency:
    """Requests allowed in flight: the recipe's number, reduced while an endpoint rejects some without a stated limit.

    Additive-increase/multiplicative-decrease (Chiu and Jain, 1989) by round trips: a round trip ends with the answer to
    the first request that left after its beginning, and changes the limit at most once. A shrink goes down to the share
    that was accepted, at most to half. Below the level that held before, growth is fast, as after TCP's slow start.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self._level = float(most)
        self._ends_with = 0
        self._sent = self._busy = 0

    def note(self, ticket: Ticket, *, busy: bool, latest: int, in_use: int) -> None:
        """Count a send that came back. `latest` is the number of the last one sent."""
        self._sent += 1
        self._busy += busy
        if ticket.number < self._ends_with:
            return
        share = self._busy / self._sent
        if share >= SHRINK_SHARE:
            self.limit = max(1.0, self.limit * max(MOST_SHRINK, 1 - share))
            if share < 1:  # some were accepted: this is what it carries; else it is down, and will carry what it did
                self._level = self.limit
        elif share <= GROW_SHARE or self.limit < self._level:
            factor = FAST_GROWTH if self.limit < self._level else GROWTH
            if in_use >= self.limit - 1:
                self.limit = min(float(self.most), max(self.limit + 1, self.limit * factor))
        self._ends_with, self._sent, self._busy = latest + 1, 0, 0

    def shrink(self) -> None:
        """Halve, once."""
        self.limit = max(1.0, self.limit * MOST_SHRINK)
