"""Shares of right answers among k of n samples of one prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from math import comb
from random import Random

SUBSETS = 1_000
"""Subsets of k samples up to which all are taken; of more, as many are drawn."""


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of k samples is right: 1 − C(n − c, k) / C(n, k) (Chen et al., 2021, arXiv 2107.03374).

    Raises `ValueError` with fewer than k samples.
    """
    if samples < k:
        raise ValueError(f"pass@{k} needs {k} samples or more, found {samples}")
    return 1 - comb(samples - right, k) / comb(samples, k)


def maj_at_k(votes: Sequence[tuple[str | None, bool]], k: int, *, seed: str = "") -> float:
    """The chance that the most frequent answer of k samples is right: the mean over all subsets of k, or 1,000 of them.

    `votes`: the final answer of each sample, `None` without one, which does not vote, and whether it is right. Of m
    answers that are equally frequent, each counts 1/m. Raises `ValueError` with fewer than k samples.
    """
    if len(votes) < k:
        raise ValueError(f"maj@{k} needs {k} samples or more, found {len(votes)}")
    subsets: Iterable[Sequence[tuple[str | None, bool]]] = combinations(votes, k)
    count = comb(len(votes), k)
    if count > SUBSETS:
        rng, count = Random(f"{seed}:{k}"), SUBSETS
        subsets = (rng.sample(votes, k) for _ in range(count))
    return sum(_majority(one) for one in subsets) / count


def _majority(votes: Iterable[tuple[str | None, bool]]) -> float:
    counts, right = Counter[str](), Counter[str]()
    for answer, is_right in votes:
        if answer is not None:
            counts[answer] += 1
            right[answer] += is_right
    most = max(counts.values(), default=0)
    first = [answer for answer, count in counts.items() if count == most]
    return sum(right[answer] / most for answer in first) / len(first) if first else 0.0


def majority(votes: Iterable[str | None]) -> str | None:
    """The answer that more samples give than any other; `None` where two are equally frequent, or none votes."""
    ranked = Counter(one for one in votes if one is not None).most_common(2)
    is_tie = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    return ranked[0][0] if ranked and not is_tie else None
