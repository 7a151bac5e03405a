"""Selects a diverse subset of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from distill import recipe
from distill.core.hashing import hash64
from distill.curate.filters import Compared, answers_of, both_ends, compared_text
from distill.text.tfidf import SCALE, hashed_vectors
from distill.text.words import comparable
from distill.types import Session, Verdict

Vectors: TypeAlias = NDArray[np.float32]
AT_ONCE = 2_000


class Selection:
    """A small set that covers the prompts, as LIMA's 1,000 do (Zhou et al. 2023, arXiv 2305.11206).

    Farthest point first (Gonzalez 1985), whose greatest distance of a row to the set is at most twice the optimum: it
    begins with the row nearest to the mean and repeatedly adds the row least similar to the selected ones, by the
    cosine of TF-IDF vectors hashed to 256 dimensions. The same rows give the same set in any order: sums are exact, and
    ties go to the text that sorts first. Selecting 1,000 of 100,000 takes some 10 s. Outliers are far from all other
    rows and so are selected early: put the quality rules before this one.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: selection`."""

        count: Annotated[int, Field(ge=1)] = 1_000
        """Rows to keep (LIMA: 1,000)."""
        on: Compared = "prompt"
        min_chars: Annotated[int, Field(ge=0)] | None = None
        """Rows with a shorter answer are dropped first (LIMA: 1,200 for Stack Exchange)."""
        max_chars: Annotated[int, Field(ge=0)] | None = None
        """Rows with a longer answer are dropped first (LIMA: 4,096 for Stack Exchange)."""

        @model_validator(mode="after")
        def _ordered(self) -> Selection.Options:
            if self.min_chars is not None and self.max_chars is not None and self.min_chars > self.max_chars:
                raise ValueError(
                    f"min_chars {self.min_chars} is above max_chars {self.max_chars}; no row could be kept"
                )
            return self

    scope: Literal["set"] = "set"

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide_all(self, sessions: Sequence[Session]) -> list[Verdict]:
        """A verdict's value is the cosine with the most similar selected row; a dropped row's neighbour is that row."""
        verdicts = [self._window(session) for session in sessions]
        inside = [place for place, verdict in enumerate(verdicts) if verdict.keep]
        if len(inside) <= self.options.count:
            return verdicts
        texts = [both_ends(compared_text(sessions[place], self.options.on)) for place in inside]
        places, cosines, owners = farthest_first(
            hashed_vectors([*map(comparable, texts)], hash64), texts, self.options.count
        )
        selection = set(places)
        for order, place in enumerate(inside):
            keep = order in selection
            verdicts[place] = Verdict(
                rule="selection",
                keep=keep,
                reason="ok" if keep else "not_selected",
                value=round(float(cosines[order]), 4) if len(selection) > 1 or not keep else None,
                threshold=self.options.count,
                neighbour=None if keep else sessions[inside[owners[order]]].id,
            )
        return verdicts

    def _window(self, session: Session) -> Verdict:
        chars, least, most = len("\n".join(answers_of(session))), self.options.min_chars, self.options.max_chars
        if least is not None and chars < least:
            return Verdict(rule="selection", keep=False, reason="too_few_chars", value=chars, threshold=least)
        if most is not None and chars > most:
            return Verdict(rule="selection", keep=False, reason="too_many_chars", value=chars, threshold=most)
        return Verdict(rule="selection", keep=True, reason="ok", value=chars)


def farthest_first(
    rows: Vectors, texts: Sequence[str], count: int
) -> tuple[list[int], NDArray[np.float64], NDArray[np.int64]]:
    """The selected rows in order; and for each row the cosine with, and the place of, the nearest other selected row.

    `rows` is (rows, dimensions), the two results (rows,). A row's cosine with the nearest selected row can only grow,
    so an earlier value is a lower bound: a row is compared again only when its bound is the least of all (the lazy
    evaluation of Minoux 1978).
    """
    selection = [_middle(rows, texts)]
    products = rows @ rows[selection[0]]
    bounds = [
        (product, texts[place], place, 1) for place, product in enumerate(products.tolist()) if place != selection[0]
    ]
    heapify(bounds)
    while len(selection) < count:
        product, text, place, comparisons = heappop(bounds)
        if comparisons == len(selection):
            selection.append(place)
        else:
            product_now = float((rows[selection[comparisons:]] @ rows[place]).max())
            heappush(bounds, (max(product, product_now), text, place, len(selection)))
    return selection, *_nearest(rows, selection)


def _middle(rows: Vectors, texts: Sequence[str]) -> int:
    """The row nearest to the mean, of equals the one whose text sorts first; sums are exact (integers below 2^53)."""
    total = rows.sum(axis=0, dtype=np.float64)
    blocks = (rows[start : start + AT_ONCE].astype(np.float64) @ total for start in range(0, len(rows), AT_ONCE))
    products = np.concatenate([*blocks])
    return min(np.flatnonzero(products == products.max()).tolist(), key=lambda place: (texts[place], place))


def _nearest(rows: Vectors, places: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cosine and place of the nearest selected row, other than itself, for each row: two arrays (rows,)."""
    selection = np.array(places)
    cosines, owners = np.empty(len(rows)), np.empty(len(rows), dtype=np.int64)
    order = np.full(len(rows), -1)
    order[selection] = np.arange(len(selection))
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE] @ rows[selection].T
        ranks = order[start : start + AT_ONCE]
        some[np.flatnonzero(ranks >= 0), ranks[ranks >= 0]] = -np.inf
        owners[start : start + AT_ONCE] = selection[some.argmax(axis=1)]
        cosines[start : start + AT_ONCE] = np.minimum(some.max(axis=1) / SCALE**2, 1)
    return cosines, owners
