"""Keeps so many sessions, as different from each other as can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from distill import recipe
from distill.filters import Compared, answers_of, compared_text
from distill.novelty import comparable
from distill.types import Session, Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]

DIMENSIONS = 256
"""Length of a vector: 100 MB for 100,000 rows; a cosine is off by about 1/16 (Weinberger et al. 2009)."""
AT_ONCE = 2_000


class Selection:
    """A small set that covers the prompts, as LIMA's 1,000 do (Zhou et al. 2023, arXiv 2305.11206).

    Farthest point first (Gonzalez 1985), which is at most twice as far from every row as the best set: it begins with
    the row nearest to the mean and adds the row least similar to all chosen so far, by the cosine of TF-IDF vectors
    that are hashed to 256 dimensions. The same rows give the same set in any order, but for exact ties, which go to the
    earlier row. It costs rows times `count`: 15 s for 1,000 of 100,000. Odd rows are far from all others and so are
    chosen early: put the rules on quality before this one.
    """

    class Options(recipe.Options):
        """Options of `filter: selection`."""

        count: Annotated[int, Field(ge=1)] = 1_000
        """Rows to keep (LIMA: 1,000)."""
        on: Compared = "prompt"
        """What must differ: `prompt` (the first user message), `answer`, or `both`."""
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
        """A dropped row's neighbour is the chosen row most similar to it, and its value the cosine."""
        verdicts = [self._window(session) for session in sessions]
        inside = [place for place, verdict in enumerate(verdicts) if verdict.keep]
        if len(inside) <= self.options.count:
            return verdicts
        texts = [comparable(compared_text(sessions[place], self.options.on)) for place in inside]
        chosen, cosines, owners = farthest_first(vectors(texts), self.options.count)
        for order, place in enumerate(inside):
            keep = order in chosen
            verdicts[place] = Verdict(
                rule="selection",
                keep=keep,
                reason="ok" if keep else "not_selected",
                value=round(float(cosines[order]), 4) if cosines[order] >= -1 else None,
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


def vectors(texts: Sequence[Sequence[str]]) -> Vectors:
    """TF-IDF of each text's tokens, signs and places by hash, of length 1 (0 without tokens): (texts, DIMENSIONS)."""
    import numpy as np

    frequency = Counter(token for text in texts for token in set(text))
    number = {token: place for place, token in enumerate(frequency)}
    hashes = np.array([_hash(token) for token in number], dtype=np.uint64)
    sign = np.where(hashes >> np.uint64(63), 1.0, -1.0)
    weight = sign * (1 + np.log((1 + len(texts)) / (1 + np.array([*frequency.values()]))))
    place = (hashes % np.uint64(DIMENSIONS)).astype(np.int64)
    made = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
    for start in range(0, len(texts), AT_ONCE):
        counted = [sorted(Counter(map(number.__getitem__, text)).items()) for text in texts[start : start + AT_ONCE]]
        rows = np.repeat(np.arange(len(counted)), [len(row) for row in counted])
        tokens = np.array([token for row in counted for token, _ in row], dtype=np.int64)
        times = np.array([count for row in counted for _, count in row], dtype=np.float64)
        flat = np.bincount(
            rows * DIMENSIONS + place[tokens],
            weights=weight[tokens] * (1 + np.log(times)),
            minlength=len(counted) * DIMENSIONS,
        )
        made[start : start + len(counted)] = flat.reshape(len(counted), DIMENSIONS)
    lengths = np.linalg.norm(made, axis=1, keepdims=True)
    return np.asarray(made / np.maximum(lengths, np.float32(1e-12)))


def _hash(token: str) -> int:
    return int.from_bytes(blake2b(token.encode(errors="replace"), digest_size=8).digest(), "big")


def farthest_first(rows: Vectors, count: int) -> tuple[set[int], Vectors, NDArray[np.int64]]:
    """The chosen rows; for each row the cosine with the nearest chosen one (for a chosen: of those before), and it."""
    import numpy as np

    found = int((rows @ rows.mean(axis=0)).argmax())
    nearest = np.full(len(rows), -np.inf, dtype=np.float32)
    owner = np.zeros(len(rows), dtype=np.int64)
    told = nearest.copy()
    chosen: set[int] = set()
    while True:
        chosen.add(found)
        told[found] = nearest[found]
        cosines = rows @ rows[found]
        owner[cosines > nearest] = found
        np.maximum(nearest, cosines, out=nearest)
        nearest[found] = np.inf
        if len(chosen) == count:
            break
        found = int(nearest.argmin())
    rest = np.array([place not in chosen for place in range(len(rows))])
    told[rest] = nearest[rest]
    return chosen, told, owner
