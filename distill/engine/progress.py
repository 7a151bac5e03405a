"""Progress of an engine run: counts, throughput, cost, and the current bottleneck."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

from distill.core.console import Progress
from distill.engine import Tally

if TYPE_CHECKING:
    from distill.engine.sender import RequestSender


TICK_SECONDS = 0.1
"""Shortest time between two reports of progress."""
RATE_SECONDS = 10.0
"""Rates are those of so many last seconds."""
AGAIN = "Ctrl-C again drops them"
PILOT = 20
"""Flows after whose end the cost of all is forecast."""


class ProgressReport:
    """Progress display, updated at most every tenth of a second."""

    def __init__(self, progress: Progress, total: int, tally: Tally) -> None:
        self.done = 0
        self.total = total
        self.sender: RequestSender | None = None
        self.is_interrupted = False
        self._progress = progress
        self._tally = tally
        self._said = time.monotonic()
        self._seen: deque[tuple[float, int, int]] = deque([(self._said, self._answered(), tally.completion_tokens)])
        self._usd = RunningMean()

    def finished(self, done: int, usd: float) -> None:
        """A flow has ended, and its answers cost so much."""
        self.done = done
        self._usd.add(usd)
        self.tick()

    def tick(self) -> None:
        """Say how things stand, if it was not said just now."""
        if time.monotonic() - self._said >= TICK_SECONDS:
            self.end()

    def end(self) -> None:
        """Say how things stand."""
        self._said = time.monotonic()
        self._seen.append((self._said, self._answered(), self._tally.completion_tokens))
        while len(self._seen) > 2 and self._seen[1][0] < self._said - RATE_SECONDS:
            self._seen.popleft()
        self._progress.update(self.done, self.total, self._note())

    def _answered(self) -> int:
        in_flight = self.sender.in_flight if self.sender else 0
        return max(0, self._tally.asked - in_flight)

    def _note(self) -> str:
        tally = self._tally
        in_flight = self.sender.in_flight if self.sender else 0
        (then, answers, tokens), (now, answers_now, tokens_now) = self._seen[0], self._seen[-1]
        seconds = max(now - then, 1e-3)
        rate, token_rate = (answers_now - answers) / seconds, (tokens_now - tokens) / seconds
        if in_flight and self.is_interrupted:
            return f"waiting for {in_flight} in flight; {AGAIN}"
        notes = [f"{tally.failed} failed"] if tally.failed else []
        notes += [f"{in_flight} in flight"] if in_flight else []
        notes += [f"{rate:.0f} req/s" if rate >= 10 else f"{rate:.1f} req/s"] if rate >= 0.05 else []
        notes += [f"{token_rate:.0f} tok/s"] if token_rate >= 1 else []
        notes += [self._cost(tally.usd)] if tally.usd is not None else []
        notes += [limits] if in_flight and self.sender and (limits := self.sender.describe_limits()) else []
        return ", ".join(notes)

    def _cost(self, usd: float) -> str:
        """Spent now, and after the pilot what all flows will have cost, with its range."""
        forecast = self._usd.total(self.total)
        if forecast is None or self.done >= self.total:
            return f"{usd:.4f} USD"
        wasted = self._tally.wasted_usd * self.total / self.done  # sends that bring nothing go on coming
        digits = 2 if forecast[0] + wasted >= 1 else 4
        expected, low, high = (f"{value + wasted:.{digits}f}" for value in forecast)
        return f"{usd:.4f} USD, all {expected} ({low}-{high})"


class RunningMean:
    """Running mean and variance of the cost per flow (Welford, 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, value: float) -> None:
        """Count one more."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self._squares += step * (value - self.mean)

    def total(self, of: int) -> tuple[float, float, float] | None:
        """The forecast sum of `of` values, and a 95% range for it; `None` before the pilot has ended.

        What is known is exact; each of the rest varies as those did, around a mean that is known from those only.
        """
        if self.count < PILOT:
            return None
        rest = max(0, of - self.count)
        expected = self.mean * of
        variance = self._squares / (self.count - 1)
        half = 1.96 * math.sqrt(variance * (rest + rest**2 / self.count))
        return expected, max(self.mean * self.count, expected - half), expected + half
