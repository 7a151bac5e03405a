"""Progress of an engine run: counts, throughput, cost, and the current bottleneck."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import TYPE_CHECKING

from distill.core.console import Progress, duration
from distill.engine import Tally

if TYPE_CHECKING:
    from distill.engine.sender import RequestSender


TICK_SECONDS = 0.1
"""Shortest time between two reports of progress."""
RATE_SECONDS = 10.0
"""Rates are means over the last 10 seconds."""
SILENT_SECONDS = 10.0
"""Time without an answer from which that is reported."""
AGAIN = "Ctrl-C again drops them"
PILOT = 20
"""Finished flows after which the cost of all is forecast."""


class ProgressReport:
    """Progress display, updated at most every tenth of a second."""

    def __init__(self, progress: Progress, total: int, tally: Tally) -> None:
        self.done = 0
        self.total = total
        self.sender: RequestSender | None = None
        self.is_interrupted = False
        self._progress = progress
        self._tally = tally
        self._reported = self._answer_time = time.monotonic()
        self._samples: deque[tuple[float, int, int]] = deque(
            [(self._reported, self._answered(), tally.completion_tokens)]
        )
        self._usd = RunningMean()

    def finished(self, done: int, usd: float) -> None:
        """Record that `done` flows are finished, the last one with answers for `usd`."""
        self.done = done
        self._usd.add(usd)
        self.tick()

    async def keep_ticking(self) -> None:
        """Update the display every second, so that waiting is never silent; ends when it is cancelled."""
        while True:
            await asyncio.sleep(1.0)
            self.tick()

    def tick(self) -> None:
        """Update the display, at most every tenth of a second."""
        if time.monotonic() - self._reported >= TICK_SECONDS:
            self.end()

    def end(self) -> None:
        """Update the display."""
        self._reported = time.monotonic()
        if self._answered() != self._samples[-1][1]:
            self._answer_time = self._reported
        self._samples.append((self._reported, self._answered(), self._tally.completion_tokens))
        while len(self._samples) > 2 and self._samples[1][0] < self._reported - RATE_SECONDS:
            self._samples.popleft()
        self._progress.update(self.done, self.total, self._note())

    def _answered(self) -> int:
        in_flight = self.sender.in_flight if self.sender else 0
        return max(0, self._tally.asked - in_flight)

    def _note(self) -> str:
        tally = self._tally
        in_flight = self.sender.in_flight if self.sender else 0
        (then, answers, tokens), (now, answers_now, tokens_now) = self._samples[0], self._samples[-1]
        seconds = max(now - then, 1e-3)
        rate, token_rate = (answers_now - answers) / seconds, (tokens_now - tokens) / seconds
        if in_flight and self.is_interrupted:
            return f"waiting for {in_flight} in flight; {AGAIN}"
        notes = [f"{tally.failed} failed"] if tally.failed else []
        notes += [f"{in_flight} in flight"] if in_flight else []
        notes += [f"{rate:.0f} req/s" if rate >= 10 else f"{rate:.1f} req/s"] if rate >= 0.05 else []
        notes += [f"{token_rate:.0f} tok/s"] if token_rate >= 1 else []
        notes += [self._cost(tally.usd)] if tally.usd is not None else []
        silent_seconds = now - self._answer_time
        notes += [f"no answer for {duration(silent_seconds)}"] if in_flight and silent_seconds >= SILENT_SECONDS else []
        notes += [waits] if self.sender and (waits := self.sender.describe_waits()) else []
        notes += [f"last fault: {self.sender.last_fault}"] if self.sender and self.sender.last_fault else []
        return ", ".join(notes)

    def _cost(self, usd: float) -> str:
        """USD spent now; after the pilot also the forecast for all flows, with its range."""
        forecast = self._usd.total(self.total)
        if forecast is None or self.done >= self.total:
            return f"{usd:.4f} USD"
        wasted = self._tally.wasted_usd * self.total / self.done  # sends without an answer will go on
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

        The values added are exact; the rest are taken to vary as those did, around their mean, which has its own error.
        """
        if self.count < PILOT:
            return None
        rest = max(0, of - self.count)
        expected = self.mean * of
        variance = self._squares / (self.count - 1)
        half = 1.96 * math.sqrt(variance * (rest + rest**2 / self.count))
        return expected, max(self.mean * self.count, expected - half), expected + half
