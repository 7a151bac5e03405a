"""Detects loss spikes, attributes them to sessions, and keeps the quarantine list.

`student/quarantined.jsonl` has one row per session: `id`; `step`, the first without it; `reason`; `loss`, its own in
nats per token (null if not finite); `median` of the steps before, and `limit`, above which a step's loss is a spike
(null before there are enough steps). The list decides what a resumed run leaves out, and from which step on,
so that it takes the very steps of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from distill.core.jsonl import append, rewrite
from distill.errors import ModelError

if TYPE_CHECKING:
    from distill.train.options import GuardOptions


LEAST_STEPS = 8
"""Steps before which no loss is a leap."""
SIGMA = 1.4826
"""Standard deviations of a normal distribution in its median distance from the middle."""
SHARE, LEAST = 0.05, 8
"""Of the sessions, how many may be set aside where the recipe does not say."""

Reason = Literal["the loss is no number", "the gradient is no number", "loss spike"]


@dataclass(frozen=True, slots=True)
class Usual:
    """Statistics of recent losses, in nats per token."""

    median: float | None = None
    limit: float = math.inf
    """Above it a loss is a leap."""


class Spikes:
    """Losses of recent accepted steps, and whether a new one is a spike."""

    def __init__(self, options: GuardOptions, losses: Iterable[float] = ()) -> None:
        self._options = options
        self._losses: deque[float] = deque(maxlen=options.window)
        for loss in losses:
            self.take(loss)

    def take(self, loss: float) -> None:
        """Add a step's loss; 0 is that of a step of which nothing was left."""
        if loss:
            self._losses.append(loss)

    def usual(self) -> Usual:
        """Median and bound; the bound is `spike` deviations above it, and at least `spike_nats`.

        The deviation is that of one step from the next (after von Neumann, 1941, "Distribution of the ratio of the
        mean square successive difference to the variance"), so that a loss which falls fast does not hide a leap.
        """
        if len(self._losses) < LEAST_STEPS or not self._options.spike:
            return Usual()
        middle = median(self._losses)
        changes = [abs(later - loss) for loss, later in pairwise(self._losses)]
        deviation = SIGMA / math.sqrt(2) * median(changes)
        return Usual(middle, middle + max(self._options.spike * deviation, self._options.spike_nats))


@dataclass(frozen=True, slots=True)
class RowLoss:
    """One example's contribution to a step."""

    row: int
    """Its index."""
    total: float
    """Nats over its trained tokens; no number where the forward pass ended in none."""
    tokens: int
    """Trained ones."""

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.total / max(1, self.tokens)


def mean_loss(losses: Sequence[RowLoss]) -> float:
    """Of the step, nats per trained token."""
    return sum(one.total for one in losses) / max(1, sum(one.tokens for one in losses))


def to_blame(losses: Sequence[RowLoss], usual: Usual) -> list[RowLoss]:
    """The fewest examples without which the step has no loss spike, those that raise it most first.

    All of them when no part of the step would do: then it is the weights, not the examples.
    """
    middle = usual.median or 0.0
    worst = sorted(losses, key=lambda one: middle * one.tokens - one.total)
    for count in range(1, len(worst)):
        if mean_loss(worst[count:]) <= usual.limit:
            return worst[:count]
    return worst


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """An excluded session, as a row of quarantined.jsonl."""

    id: str
    step: int
    """The first step without it, counted from 1."""
    reason: Reason
    loss: float | None
    median: float | None
    limit: float | None


class Quarantine:
    """Sessions excluded in this run."""

    def __init__(self, path: Path, most: int, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self._path, self.most = path, most
        self.entries = [QuarantineEntry(**entry) for entry in entries]
        rewrite(path, self.entries)

    def left_out(self, step: int) -> set[str]:
        """Ids that take no part in a step."""
        return {one.id for one in self.entries if one.step <= step}

    def require_room(self, more: int, *, step: int, steps: int, why: str, learning_rate: float) -> None:
        """Raise `ModelError` where more would be set aside than may be."""
        if len(self.entries) + more > self.most:
            raise ModelError(
                f"training stopped at step {step} of {steps}: {why}, and {len(self.entries)} of {self.most} sessions "
                f"that may be set aside (train.guard.max_quarantined) are already; lower train.learning_rate (it is "
                f"{learning_rate:g}), or look at the sessions in {self._path}"
            )

    def add(self, entries: Sequence[QuarantineEntry]) -> None:
        """Set sessions aside, on the disk too."""
        self.entries += entries
        append(self._path, entries)


def most_quarantined(options: GuardOptions, sessions: int) -> int:
    """How many sessions may be set aside."""
    if options.max_quarantined is not None:
        return options.max_quarantined
    return max(LEAST, int(sessions * SHARE))


def finite(value: float | None) -> float | None:
    """The value, or None where JSON has no name for it."""
    return value if value is not None and math.isfinite(value) else None
