"""Progress of an engine run: counts, throughput, cost, and the current bottleneck."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.core.console import Progress, Say, duration, money, silent
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
"""Finished flows after which tokens and cost of all are forecast."""


class ProgressReport:
    """Progress display, updated at most every tenth of a second."""

    def __init__(self, progress: Progress, total: int, tally: Tally, *, title: str = "", say: Say = silent) -> None:
        self.done = 0
        self.total = total
        self.title = title
        self.say = say
        self.sender: RequestSender | None = None
        self.is_interrupted = False
        self._progress = progress
        self._tally = tally
        self._reported = self._answer_time = time.monotonic()
        self._samples: deque[tuple[float, int, int]] = deque(
            [(self._reported, self._answered(), tally.completion_tokens)]
        )
        self._usd = RunningMean()
        self._tokens = RunningMean()
        self._tasks = RunningMean()
        self._has_forecast = False

    def finished(self, done: int, usd: float, tokens: int) -> None:
        """Record that `done` flows are finished, the last one with answers of `tokens` tokens for `usd`."""
        self.done = done
        self._add(usd, tokens)
        if self._is_time():
            self._say_forecast(
                f"{self._tokens.count} of {self.total:,}: {self._tokens.mean:.0f} answer tokens each",
                [(one[1], one[2]) for mean in (self._tokens, self._usd) if (one := mean.total(self.total)) is not None],
            )
        self.tick()

    def admitted(self, done: int, tasks: int, window: int, usd: float, tokens: int) -> None:
        """Record a proposal of a growth that brought `tasks`, `done` in all; `window` proposals are begun at once."""
        self.done = done
        self._add(usd, tokens)
        self._tasks.add(tasks)
        if self._is_time():
            low, high = requests_for(self._tasks, self.total, window)
            self._say_forecast(
                f"{self._tasks.count} requests: {self._tasks.mean:.1f} tasks and {self._tokens.mean:.0f} answer tokens "
                f"each; {amount(low, high)} requests for {self.total:,} tasks",
                [(one.mean * low, one.mean * high) for one in (self._tokens, self._usd) if high is not None],
            )
        self.tick()

    def proposals_for(self, tasks: int) -> int | None:
        """The most proposals that so many more tasks will need, by those admitted; `None` where that is not known."""
        most = self._tasks.needed(tasks)[1] if self._tasks.count >= PILOT else None
        return None if most is None else max(1, most)

    def await_rest(self, in_flight: int) -> None:
        """Record that the target is reached, while answers are in flight that are not needed for it."""
        if in_flight:
            answers, are = ("1 answer", "is") if in_flight == 1 else (f"{in_flight:,} answers", "are")
            why = f"that {are} paid for" if self._tally.usd is not None else "in flight, for the journal"
            self.say(f"{self.title}: {self.total:,} of {self.total:,} tasks; waiting for {answers} {why}")

    def _add(self, usd: float, tokens: int) -> None:
        self._usd.add(usd)
        self._tokens.add(tokens)

    def _is_time(self) -> bool:
        """Whether the pilot has ended, more is to come, and it is not all from the journal; once."""
        return (
            not self._has_forecast and self._tokens.count >= PILOT and self.done < self.total and self._tally.asked > 0
        )

    def _say_forecast(self, observed: str, ranges: Sequence[tuple[float, float]]) -> None:
        """Say what each answer took, and the ranges of all tokens and USD, where they are bounded and known."""
        self._has_forecast = True
        tokens, usd = ranges or (None, None)
        texts = [f"{self.title}: after {observed}"]
        if tokens is not None and self._tokens.mean:
            texts.append(f"{amount(round(tokens[0]), round(tokens[1]))} answer tokens in all")
        if usd is not None and self._tally.usd is not None:
            texts.append(money(*usd))
        self.say(", ".join(texts))

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
        forecast = None if self._tasks.count else self._usd.total(self.total)
        if forecast is None or self.done >= self.total:
            return money(usd)
        wasted = self._tally.wasted_usd * self.total / self.done  # sends without an answer will go on
        expected, low, high = (value + wasted for value in forecast)
        return f"{money(usd)}, all {money(expected)} ({money(low, high)})"


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

    def needed(self, rest: float) -> tuple[int, int | None]:
        """How many more values add up to `rest`: a 95% range, whose end is `None` where the mean may be 0.

        m values of the same mean and variance sum to m · mean ± 1.96 · √(variance · (m + m² / count)), which is solved
        for m (as Fieller, 1954, does for a ratio).
        """
        spread = 1.96**2 * self._squares / (self.count - 1)
        certain = self.mean**2 - spread / self.count
        middle = 2 * rest * self.mean + spread
        root = math.sqrt(middle**2 - 4 * certain * rest**2)
        low = math.ceil(2 * rest**2 / (middle + root)) if middle else 1
        return low, math.ceil((middle + root) / (2 * certain)) if certain > 0 else None


def requests_for(tasks: RunningMean, target: int, window: int) -> tuple[int, int | None]:
    """The requests of a growth to `target` tasks, by those that each of its first ones brought: a 95% range.

    At its end up to `window` - 1 requests are in flight that no task needs. The end is `None` where it is not bounded.
    """
    low, high = tasks.needed(max(0.0, target - tasks.mean * tasks.count))
    return tasks.count + low, None if high is None else tasks.count + high + window - 1


def amount(low: int, high: int | None) -> str:
    """A range in words."""
    if high is None:
        return f"{low:,} or more"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
