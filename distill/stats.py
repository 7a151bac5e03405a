"""Means with bootstrap intervals over prompts, paired where two models answered the same prompts.

The prompt is the unit: what one prompt gives for several models is resampled together (percentile method, Efron &
Tibshirani, 1993, ch. 13). Nothing here returns a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy

Floats: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.float64]]"

RESAMPLES = 10_000
LEVEL = 0.95
MIN_PROMPTS = 6
"""With fewer, no difference is called one: even when all of five agree, a two-sided sign test has p = 0.06."""
_INDICES_AT_ONCE = 1 << 20
"""Resampled indices held in memory at once (8 MB), whatever the number of prompts."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` prompts and the ends of its 95% interval; with one prompt the ends are the mean itself."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of paired differences over `n` prompts."""

    mean: float
    low: float
    high: float
    n: int
    excludes_zero: bool
    """Whether the interval lies on one side of zero; never with fewer than `MIN_PROMPTS`."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The share of the way from one mean to another that a third has gone: 0 none, 1 all; below 0 the wrong way."""

    share: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A statistic that would mislead, and why."""

    reason: str


def mean_interval(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval | None:
    """The mean and its 95% percentile interval; `None` of no values. Values must be finite."""
    if not values:
        return None
    columns = _columns(values)
    low, high = _ends(_resampled_means(columns, seed, resamples)[:, 0])
    return Interval(float(columns.mean()), low, high, len(values))


def paired_difference(
    values: Sequence[float], others: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Difference | None:
    """The mean of `values` − `others`, prompt by prompt, and its 95% interval; `None` of no prompts.

    Raises `ValueError` when the two are not equally long.
    """
    found = mean_interval([a - b for a, b in zip(values, others, strict=True)], seed=seed, resamples=resamples)
    if found is None:
        return None
    excludes = found.n >= MIN_PROMPTS and (found.low > 0 or found.high < 0)
    return Difference(found.mean, found.low, found.high, found.n, excludes)


def gap_closed(
    base: Sequence[float],
    student: Sequence[float],
    target: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Gap | Refused:
    """(student − base) / (target − base) of the means, whichever direction is better, and its 95% interval.

    The three lists hold the same prompts in the same order and are resampled together. Refused when the interval of
    target − base includes 0, since then there is no gap to speak of. Resamples in which that difference is exactly 0
    are left out of the interval.
    """
    distance = paired_difference(target, base, seed=seed, resamples=resamples)
    if distance is None:
        return Refused("no prompt has all three values")
    if distance.n < MIN_PROMPTS:
        return Refused(f"{distance.n} prompts are too few; at least {MIN_PROMPTS} are needed")
    if not distance.excludes_zero:
        return Refused("there is no gap to close: the interval of the difference between target and base includes 0")
    columns = _columns(base, student, target)
    ratios = _ratios(_resampled_means(columns, seed, resamples))
    low, high = _ends(ratios)
    (share,) = _ratios(columns.mean(axis=0, keepdims=True))
    return Gap(float(share), low, high, distance.n)


def _ratios(means: Floats) -> Floats:
    """Of rows of (base, student, target)."""
    above, below = means[:, 1] - means[:, 0], means[:, 2] - means[:, 0]
    ratios: Floats = above[below != 0] / below[below != 0]
    return ratios


def _columns(*columns: Sequence[float]) -> Floats:
    """One row a prompt, one column a model. Raises `ValueError` for a value that is not finite."""
    import numpy

    if not all(math.isfinite(value) for column in columns for value in column):
        raise ValueError("a value to average is not finite")
    rows: Floats = numpy.array(columns, dtype=numpy.float64).T
    return rows


def _resampled_means(columns: Floats, seed: int, resamples: int) -> Floats:
    """Means of each column over prompts drawn with replacement, one row a resample; the same draws for all columns."""
    import numpy

    generator = numpy.random.default_rng(seed)
    prompts = len(columns)
    step = max(1, _INDICES_AT_ONCE // prompts)
    parts = []
    for start in range(0, resamples, step):
        drawn = generator.integers(prompts, size=(min(step, resamples - start), prompts))
        parts.append(columns[drawn].mean(axis=1))
    return numpy.concatenate(parts)


def _ends(values: Floats) -> tuple[float, float]:
    import numpy

    tail = 100 * (1 - LEVEL) / 2
    low, high = numpy.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
