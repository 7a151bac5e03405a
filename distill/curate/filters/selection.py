"""Selects a diverse subset of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from distill import recipe
from distill.core.hashing import hash64
from distill.curate.filters import Compared, answers_of, compared_text
from distill.text.rouge_index import comparable
from distill.text.tfidf import SCALE, hashed_vectors
from distill.types import Session, Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distill.text.tfidf import Vectors

AT_ONCE = 2_000


class Selection:
    """A small set that covers the prompts, as LIMA's 1,000 do (Zhou et al. 2023, arXiv 2305.11206).

    Farthest point first (Gonzalez 1985), which is at most twice as far from every row as the best set: it begins with
    the row nearest to the mean and adds the row least similar to all chosen so far, by the cosine of TF-IDF vectors
    that are hashed to 256 dimensions. The same rows give the same set in any order: sums are exact, and ties go to the
    text that comes first in the alphabet. 1,000 of 100,000 take some 10 s. Outliers are far from all other rows and so
    are chosen early: put the quality rules before this one.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: selection`."""

        count: Annotated[int, Field(ge=1)] = 1_000
        """Rows to keep (LIMA: 1,000)."""
        on: Compared = "prompt"
        """The text that must differ: `prompt` (the first user message), `answer`, or `both`."""
        min_chars: Annotated[int, Field(ge=0)] | None = None
        """Rows with a shorter answer are dropped before (LIMA: 1,200 for Stack Exchange)."""
        max_chars: Annotated[int, Field(ge=0)] | None = None
        """Rows with a longer answer are dropped before (LIMA: 4,096 for Stack Exchange)."""

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
        """A verdict's value is the cosine with the most similar chosen row; a dropped row's neighbour is that row."""
        verdicts = [self._window(session) for session in sessions]
        inside = [place for place, verdict in enumerate(verdicts) if verdict.keep]
        if len(inside) <= self.options.count:
            return verdicts
        texts = [compared_text(sessions[place], self.options.on) for place in inside]
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
        chars = len("\n".join(answers_of(session)))
        for bound, outside, reason in (
            (self.options.min_chars, chars < (self.options.min_chars or 0), "too_few_chars"),
            (self.options.max_chars, chars > (self.options.max_chars or chars), "too_many_chars"),
        ):
            if outside:
                return Verdict(rule="selection", keep=False, reason=reason, value=chars, threshold=bound)
        return Verdict(rule="selection", keep=True, reason="ok", value=chars)


def farthest_first(
    rows: Vectors, texts: Sequence[str], count: int
) -> tuple[list[int], NDArray[np.float64], NDArray[np.int64]]:
    """The chosen rows in order; for each row the cosine with the nearest chosen one, itself left out, and that one.

    A row's cosine with the nearest chosen one can only grow, so that what was true of fewer chosen rows is a bound: a
    row is looked at again only when its bound is the least of all (lazily, as Minoux 1978 does for greedy maxima).
    """
    selection = [_middle(rows, texts)]
    products = rows @ rows[selection[0]]
    bounds = [
        (product, texts[place], place, 1) for place, product in enumerate(products.tolist()) if place != selection[0]
    ]
    heapify(bounds)
    while len(selection) < count:
        product, text, place, compared = heappop(bounds)
        if compared == len(selection):
            selection.append(place)
        else:
            product_now = float((rows[selection[compared:]] @ rows[place]).max())
            heappush(bounds, (max(product, product_now), text, place, len(selection)))
    return selection, *_nearest(rows, selection)


def _middle(rows: Vectors, texts: Sequence[str]) -> int:
    """The row nearest to the mean, of equals the one whose text comes first; sums of whole numbers below 2^53."""
    import numpy as np

    total = rows.sum(axis=0, dtype=np.float64)
    blocks = (rows[start : start + AT_ONCE].astype(np.float64) @ total for start in range(0, len(rows), AT_ONCE))
    products = np.concatenate([*blocks])
    return min(np.flatnonzero(products == products.max()).tolist(), key=lambda place: (texts[place], place))


def _nearest(rows: Vectors, places: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cosine and place of the nearest chosen row, for each row; a chosen one is not its own."""
    import numpy as np

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
