"""Bootstrap intervals and sign-flip tests over prompts, paired where two models answered the same prompts.

The prompt is the unit of resampling: all numbers of a prompt, of several models or samples, are drawn together. The
intervals are expanded percentile intervals: percentile intervals (Efron & Tibshirani, 1993, ch. 13), widened so that
they hold for few prompts too (Hesterberg, 2015, The American Statistician 69(4), section 5.3). Nothing here returns a
NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy


K = TypeVar("K")
Floats: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.float64]]"

RESAMPLES = 10_000
LEVEL = 0.95
MIN_PROMPTS = 6
"""With fewer, no difference counts as clear: even when all five agree, a two-sided sign test has p = 0.06."""
MIN_CONTROLLED = 20
MIN_OTHER_SIGN = 0.05
"""A length-controlled rate needs this many prompts, and this share of them with the longer answer on either side."""
FLIPS = 10_000
"""Random sign patterns of a permutation test; up to `_EXACT_UP_TO` prompts, all patterns are taken instead."""
_EXACT_UP_TO = 13
_CELLS_AT_ONCE = 1 << 20
"""Resampled prompts held in memory at once (8 MB)."""
_NORMAL = NormalDist()


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
    """Share of the distance between two means that a third one has covered: 0 none, 1 all, below 0 the wrong way."""

    share: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Misleading:
    """A statistic withheld because it would mislead, and why."""

    reason: str


def mean_interval(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval | None:
    """The mean and its 95% interval; `None` of no values. Values must be finite."""
    if not values:
        return None
    columns = _columns(values)
    low, high = _ends(_resampled_means(columns, seed, resamples)[:, 0], len(values))
    return Interval(float(columns.mean()), low, high, len(values))


def interval_of(
    columns: Floats, statistic: Callable[[Floats], Floats], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """A statistic of columns of numbers, (prompts, columns), and its 95% interval over resampled prompts.

    `statistic` maps means of the columns, (rows, columns), to one number per row.
    """
    low, high = _ends(statistic(_resampled_means(columns, seed, resamples)), len(columns))
    return Interval(float(statistic(columns.mean(axis=0, keepdims=True))[0]), low, high, len(columns))


def clustered_interval(
    values: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval | None:
    """The mean of all values and its 95% interval when whole clusters are resampled, such as a prompt's two orders.

    `n` is the number of clusters, which may differ in size. Raises `ValueError` when the two differ in length.
    """
    sums: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        total = sums.setdefault(cluster, [0.0, 0.0])
        total[0] += value
        total[1] += 1
    if not sums:
        return None
    columns = _columns(*zip(*sums.values(), strict=True))
    means = _resampled_means(columns, seed, resamples)
    low, high = _ends(means[:, 0] / means[:, 1], len(sums))
    return Interval(float(columns[:, 0].sum() / columns[:, 1].sum()), low, high, len(sums))


def paired_difference(
    values: Sequence[float], others: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Difference | None:
    """The mean of `values` − `others`, prompt by prompt, and its 95% interval; `None` of no prompts.

    Raises `ValueError` when the two are not equally long.
    """
    interval = mean_interval([a - b for a, b in zip(values, others, strict=True)], seed=seed, resamples=resamples)
    if interval is None:
        return None
    excludes = interval.n >= MIN_PROMPTS and (interval.low > 0 or interval.high < 0)
    return Difference(interval.mean, interval.low, interval.high, interval.n, excludes)


def gap_closed(
    base: Sequence[float],
    student: Sequence[float],
    target: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Gap | Misleading:
    """(student − base) / (target − base) of the means, whichever direction is better, and its 95% interval.

    The three lists hold the same prompts in the same order and are resampled together. `Misleading` when the interval
    of target − base includes 0, since then there may be no gap. Resamples in which that difference is exactly 0 are
    left out of the interval.
    """
    distance = paired_difference(target, base, seed=seed, resamples=resamples)
    if distance is None:
        return Misleading("no prompt has all three values")
    if distance.n < MIN_PROMPTS:
        return Misleading(f"{distance.n} prompts are too few; at least {MIN_PROMPTS} are needed")
    if not distance.excludes_zero:
        return Misleading("there is no gap to close: the interval of the difference between target and base includes 0")
    columns = _columns(base, student, target)
    ratios = _ratios(_resampled_means(columns, seed, resamples))
    low, high = _ends(ratios, distance.n)
    (share,) = _ratios(columns.mean(axis=0, keepdims=True))
    return Gap(float(share), low, high, distance.n)


def sign_flip_p(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> float | None:
    """Two-sided p of the mean paired difference, under the hypothesis that each prompt's sign is a coin flip.

    Fisher's randomisation test for pairs: the share of sign patterns whose mean is as far from 0 as the observed one.
    Up to 13 prompts that differ, all patterns are taken; else 10,000 random ones and the observed one (Phipson & Smyth,
    2010). `None` with fewer than `MIN_PROMPTS`; prompts without a difference are left out. Raises `ValueError` when the
    two are not equally long.
    """
    import numpy

    differences = _columns([a - b for a, b in zip(values, others, strict=True)])[:, 0]
    if len(differences) < MIN_PROMPTS:
        return None
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    distance = abs(float(differences.sum()))
    slack = 1e-9 * float(numpy.abs(differences).sum())
    as_far = patterns = 0
    for signs in _signs(len(differences), seed):
        as_far += int((numpy.abs(signs @ differences) >= distance - slack).sum())
        patterns += len(signs)
    is_exact = len(differences) <= _EXACT_UP_TO
    return as_far / patterns if is_exact else (as_far + 1) / (patterns + 1)


def _signs(count: int, seed: int) -> Iterator[Floats]:
    """Sign patterns, (patterns, count) of −1 and 1, in parts: all of them up to `_EXACT_UP_TO`, else random ones."""
    import numpy

    if count <= _EXACT_UP_TO:
        every = numpy.arange(1 << count)[:, None] >> numpy.arange(count) & 1
        yield (1 - 2 * every).astype(numpy.float64)
        return
    generator = numpy.random.default_rng(seed)
    for rows in _parts(FLIPS, count):
        bits = numpy.frombuffer(generator.bytes(rows * ((count + 7) // 8)), numpy.uint8).reshape(rows, -1)
        yield 1 - 2 * numpy.unpackbits(bits, axis=1)[:, :count].astype(numpy.float64)


def length_controlled(
    worth: Sequence[float], longer_by: Sequence[float], *, seed: int = 0, resamples: int = 1_000
) -> Interval | Misleading:
    """The win rate at equal length, by a logistic regression of the outcome on the difference in length.

    `worth` is 1, ½ or 0 per prompt, `longer_by` how much longer the answer is, in any unit; it enters as tanh(x / sd),
    as in AlpacaEval 2 (Dubois et al., 2024, arXiv 2404.04475), whose other terms belong to its own prompts. The
    interval comes from a refit on each resample of the prompts. `Misleading` with few prompts, and where nearly all
    differences have one sign, since then the effects of length and model cannot be separated.
    """
    import numpy

    outcomes, lengths = _columns(worth)[:, 0], _columns(longer_by)[:, 0]
    if len(outcomes) < MIN_CONTROLLED:
        return Misleading(
            f"{len(outcomes)} prompts are too few to separate length from the rest; {MIN_CONTROLLED} needed"
        )
    if min((lengths > 0).mean(), (lengths < 0).mean()) < MIN_OTHER_SIGN:
        return Misleading("the answers of one are hardly ever longer, so length cannot be told from the model")
    scaled = numpy.tanh(lengths / lengths.std())
    weights = numpy.concatenate([numpy.ones((1, len(outcomes))), *_draws(len(outcomes), seed, resamples)])
    at_zero = _at_equal_length(outcomes, scaled, weights)
    low, high = _ends(at_zero[1:], len(outcomes))
    return Interval(float(at_zero[0]), low, high, len(outcomes))


def _at_equal_length(outcomes: Floats, scaled: Floats, weights: Floats) -> Floats:
    """σ(intercept) of outcome ~ σ(intercept + slope · length) for each row of weights, by Newton's method.

    `outcomes` and `scaled`: (prompts,), `weights`: (fits, prompts); returns (fits,). A ridge of 0.01 keeps the fit
    finite on resamples in which every prompt was won.
    """
    import numpy

    intercept, slope = numpy.zeros(len(weights)), numpy.zeros(len(weights))
    for _ in range(25):
        chance = 1 / (1 + numpy.exp(-(intercept[:, None] + slope[:, None] * scaled)))
        miss, bend = weights * (outcomes - chance), weights * chance * (1 - chance)
        first, second = miss.sum(1) - 0.01 * intercept, miss @ scaled - 0.01 * slope
        a, b, c = bend.sum(1) + 0.01, bend @ scaled, bend @ scaled**2 + 0.01
        determinant = a * c - b * b
        intercept = intercept + (c * first - b * second) / determinant
        slope = slope + (a * second - b * first) / determinant
    result: Floats = 1 / (1 + numpy.exp(-intercept))
    return result


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values adjusted for multiple tests (Holm, 1979), at most 1, in the same order."""
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    results, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        results[index] = highest
    return results


def with_holm(entries: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries, each with `p_holm`: its `p` adjusted for all of them; `None` without a `p`."""
    names = [name for name, entry in entries.items() if entry["p"] is not None]
    p_by_name = dict(zip(names, holm([entries[name]["p"] for name in names]), strict=True))
    return {name: {**entry, "p_holm": p_by_name.get(name)} for name, entry in entries.items()}


def by_category(categories: Mapping[K, str], figures: Callable[[list[K]], dict[str, Any]]) -> dict[str, Any]:
    """Each category's `figures`, number of prompts `n` and `p_holm`; empty where there is only one category."""
    members: dict[str, list[K]] = {}
    for key, category in categories.items():
        members.setdefault(category, []).append(key)
    if len(members) < 2:
        return {}
    return with_holm({name: {"n": len(keys), **figures(keys)} for name, keys in sorted(members.items())})


def prompts_needed(differences: Sequence[float], difference: float, *, power: float = 0.8) -> int | None:
    """Number of prompts at which a 95% interval shows a true mean difference of this size with probability `power`.

    From the spread of a pilot's paired differences: n = ((z(0.975) + z(power)) · sd / difference)², at least
    `MIN_PROMPTS`. `None` for fewer than `MIN_PROMPTS` differences, and where all are equal, so that there is no spread.
    """
    import numpy

    if len(differences) < MIN_PROMPTS or difference <= 0:
        return None
    if min(differences) == max(differences):
        return None
    deviation = float(numpy.std(_columns(differences), ddof=1))
    z = _NORMAL.inv_cdf(0.5 + LEVEL / 2) + _NORMAL.inv_cdf(power)
    return max(MIN_PROMPTS, math.ceil((z * deviation / difference) ** 2))


def power_entry(
    measure: str, differences: Sequence[float], difference: float, usd_each: float | None, explanation: str
) -> dict[str, Any]:
    """The `power` of scores.json: the prompts needed, and their cost at `usd_each` per prompt."""
    prompts = prompts_needed(differences, difference)
    usd = None if prompts is None or usd_each is None else prompts * usd_each
    return {
        "measure": measure, "difference": difference, "prompts": prompts, "usd": usd, "explanation": explanation
    }  # fmt: skip


def _ratios(means: Floats) -> Floats:
    """Shares of the gap for rows of (base, student, target); rows without a gap are left out."""
    above, below = means[:, 1] - means[:, 0], means[:, 2] - means[:, 0]
    ratios: Floats = above[below != 0] / below[below != 0]
    return ratios


def _columns(*columns: Sequence[float]) -> Floats:
    """(prompts, models) of one list per model. Raises `ValueError` for a value that is not finite."""
    import numpy

    if not all(math.isfinite(value) for column in columns for value in column):
        raise ValueError("a value to average is not finite")
    rows: Floats = numpy.array(columns, dtype=numpy.float64).T
    return rows


def _resampled_means(columns: Floats, seed: int, resamples: int) -> Floats:
    """Means of each column over prompts drawn with replacement, the same draws for all columns: (resamples, models)."""
    import numpy

    parts = [counts.astype(numpy.float64) @ columns for counts in _draws(len(columns), seed, resamples)]
    means: Floats = numpy.concatenate(parts) / len(columns)
    return means


@lru_cache(maxsize=8)
def _draws(prompts: int, seed: int, resamples: int) -> list[Any]:
    """How often each prompt is drawn in each resample: (resamples, prompts) whole numbers of a byte each, in parts.

    All measures of a comparison share them, so that resampling is a matrix product. A count over 255 would wrap; the
    chance that a prompt is drawn so often is below 1e-300.
    """
    import numpy

    generator = numpy.random.default_rng(seed)
    parts = []
    for rows in _parts(resamples, prompts):
        choices = generator.integers(prompts, size=(rows, prompts)) + numpy.arange(rows)[:, None] * prompts
        counts = numpy.bincount(choices.ravel(), minlength=rows * prompts).reshape(rows, prompts)
        parts.append(counts.astype(numpy.uint8))
    return parts


def _parts(rows: int, width: int) -> Iterator[int]:
    """Numbers of rows that sum to `rows`, each small enough for `_CELLS_AT_ONCE`."""
    step = max(1, _CELLS_AT_ONCE // width)
    for start in range(0, rows, step):
        yield min(step, rows - start)


def _ends(values: Floats, prompts: int) -> tuple[float, float]:
    """The ends of the expanded percentile interval of resampled statistics."""
    import numpy

    tail = 100 * _tail(prompts)
    low, high = numpy.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _tail(prompts: int) -> float:
    """The share of resamples beyond each end: Φ(−t · √(n/(n−1))), t the quantile of Student's distribution."""
    if prompts < 2:
        return (1 - LEVEL) / 2
    quantile = student_t(0.5 + LEVEL / 2, prompts - 1)
    return _NORMAL.cdf(-quantile * math.sqrt(prompts / (prompts - 1)))


def student_t(probability: float, freedom: int) -> float:
    """The quantile of Student's t: exact for 1 and 2 degrees of freedom, else within 0.005.

    By the expansion in powers of 1 / freedom of Abramowitz & Stegun, 26.7.5.
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = _NORMAL.inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + math.fsum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))
