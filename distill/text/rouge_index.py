"""ROUGE-L nearest-neighbour index: exact, and fast for tens of thousands of texts."""

from __future__ import annotations

import math
from array import array
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from distill.errors import DistillError
from distill.text.tokens import MAX_TOKENS
from distill.text.words import comparable, likeness_as_written

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    Places: TypeAlias = NDArray[np.int64]
    Counts: TypeAlias = NDArray[np.unsignedinteger[Any]]
    Lengths: TypeAlias = NDArray[np.int64]


_CODE_POINTS = 0x110000
_SLACK = 1e-6
"""Margin of bounds, so that rounding excludes no text."""
_UNKNOWN = "\0"
AT_FIRST = 32
"""Texts compared in the first round."""


class Neighbour(NamedTuple):
    """A text of the index and how similar it is."""

    id: str
    rouge_l: float
    """F-measure in [0, 1]."""


class NoveltyIndex:
    """An index of texts that returns the one most similar to a new text; exact for their first `MAX_TOKENS` tokens.

    Texts are compared by their `comparable` tokens, and where those are equal as they are written.

    Decisions on ASCII texts equal those of rouge_score's `fmeasure > threshold` over every text, without a stemmer, but
    for texts with the same tokens. F is computed in its order of operations, because rounding lifts about half of the
    length triples at exactly 0.7 above it (L=7, m=8, n=12), and those count as near.

    Each distinct token becomes one character, so that a bit-parallel LCS runs over plain strings. It runs over few
    texts without missing one: two texts of m and n tokens that share s of them, in any order, have an F of at most
    2s/(m+n). So s is counted for all texts at once (`Overlaps`); the texts with the greatest bounds are compared first,
    then those that can still be as similar as the best of them.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._ids: list[str] = []
        self._texts: list[str] = []
        self._encoded: list[str] = []
        self._characters: dict[str, str] = {}
        self._overlaps = Overlaps()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str, text: str) -> None:
        """Append a text."""
        encoded = "".join([self._character(token) for token in comparable(text)[:MAX_TOKENS]])
        self._ids.append(id)
        self._texts.append(text)
        self._encoded.append(encoded)
        self._overlaps.add(encoded)

    def nearest(self, text: str) -> Neighbour | None:
        """The most similar text, the earliest of equals; `None` when no text shares a token."""
        return self._best(text, least=0.0)

    def near(self, text: str) -> Neighbour | None:
        """The most similar text if it is above the threshold, else `None`; faster than `nearest`."""
        best = self._best(text, least=self.threshold)
        return best if best is not None and self.is_near(best) else None

    def all_near(self, text: str) -> list[Neighbour]:
        """Every text above the threshold, the most similar first."""
        query = self._encode(text)
        fewest = _fewest(self.threshold, len(query))
        places, _ = self._sharing(self._overlaps.shared(query), len(query), fewest)
        f = self._similarities(text, query, places)
        near = (Neighbour(self._ids[places[at]], float(f[at])) for at in (-f).argsort(kind="stable").tolist())
        return list(takewhile(self.is_near, near))

    def is_near(self, neighbour: Neighbour) -> bool:
        """Whether a neighbour is above the threshold; exactly at it is not."""
        return neighbour.rouge_l > self.threshold

    def _best(self, text: str, *, least: float) -> Neighbour | None:
        """The most similar of the texts whose F can be `least` or more.

        Those that share nearly the most tokens are compared first; the best F among them rules out most others.
        """
        query = self._encode(text)
        shared = self._overlaps.shared(query)
        most = int(shared.max(initial=0))
        if most < _fewest(least, len(query)):
            return None
        floor = max(_fewest(least, len(query)), most - most // 8 - 1)
        places, bounds = self._sharing(shared, len(query), floor)
        best = self._most_similar(text, query, _greatest(places, bounds))
        least = max(least, best.rouge_l)
        if _fewest(least, len(query)) < floor:
            places, bounds = self._sharing(shared, len(query), _fewest(least, len(query)))
        elif len(places) <= AT_FIRST:
            return best
        places = places[bounds >= least - _SLACK]
        return self._most_similar(text, query, places) if len(places) else None

    def _sharing(self, shared: Counts, length: int, fewest: int) -> tuple[Places, NDArray[np.float64]]:
        """Places of the texts that share at least `fewest` tokens, and upper bounds of their F."""
        import numpy as np

        places = np.flatnonzero(shared >= fewest)
        return places, 2.0 * shared[places] / (length + self._overlaps.lengths[places])

    def _most_similar(self, text: str, query: str, places: Places) -> Neighbour:
        """The first of those with the greatest F, for texts that each share a token with the query."""
        f = self._similarities(text, query, places)
        best = int(f.argmax())
        return Neighbour(self._ids[places[best]], float(f[best]))

    def _similarities(self, text: str, query: str, places: Places) -> NDArray[np.float64]:
        """F of texts that each share a token with the query."""
        import numpy as np
        from rapidfuzz import process
        from rapidfuzz.distance import LCSseq

        encoded = [self._encoded[place] for place in places.tolist()]
        common = process.cdist((query,), encoded, scorer=LCSseq.similarity, dtype=np.int32)[0]
        precision, recall = common / len(query), common / self._overlaps.lengths[places]
        f: NDArray[np.float64] = 2 * precision * recall / (precision + recall)
        if f.max(initial=0.0) == 1.0:
            for equal in np.flatnonzero(f == 1.0).tolist():
                f[equal] = likeness_as_written(text, self._texts[places[equal]])
        return f

    def _encode(self, text: str) -> str:
        """One character per token of a text to look up."""
        return "".join([self._characters.get(token, _UNKNOWN) for token in comparable(text)[:MAX_TOKENS]])

    def _character(self, token: str) -> str:
        character = self._characters.get(token)
        if character is None:
            if len(self._characters) + 1 >= _CODE_POINTS:
                raise DistillError(f"more than {_CODE_POINTS - 2} distinct words; compare fewer texts at once")
            character = self._characters[token] = chr(len(self._characters) + 1)
        return character


def _fewest(least: float, length: int) -> int:
    """Least tokens that a text of any length must share with one of this length for an F of `least`.

    A text that shares s tokens has at least s, so that F is at most 2s/(length+s).
    """
    return max(1, math.ceil((least - _SLACK) * length / (2 - least + _SLACK)))


def _greatest(places: Places, bounds: NDArray[np.float64]) -> Places:
    """The `AT_FIRST` places with the greatest bounds, in ascending order."""
    import numpy as np

    if len(places) <= AT_FIRST:
        return places
    return np.sort(places[np.argpartition(bounds, -AT_FIRST)[-AT_FIRST:]])


FIRST_CAPACITY = 256
COMMON = 64
"""A token in more than one of 64 texts is stored as a column."""

Token: TypeAlias = str | tuple[str, int]
"""A character, or its k-th repetition within a text."""


class Overlaps:
    """Texts encoded as one character per token, to count the tokens each shares with a new one.

    A token's second occurrence in a text counts as another token than its first, so that the count is that of two
    multisets. For each token, the places of its texts are stored as a list; for a common token, as a column with a byte
    per text, which is added as a whole at some 30 texts per nanosecond. Common tokens are recomputed whenever the
    number of texts has doubled. A query of m tokens over n texts takes about m + n/1,000 microseconds.
    """

    def __init__(self) -> None:
        import numpy as np

        self._count = 0
        self._lengths: Lengths = np.zeros(FIRST_CAPACITY, np.int64)
        self._places: dict[Token, array[int]] = {}
        self._columns: dict[Token, NDArray[np.uint8]] = {}

    @property
    def lengths(self) -> Lengths:
        """Tokens of each text."""
        return self._lengths[: self._count]

    def add(self, text: str) -> None:
        """Append a text."""
        if self._count == len(self._lengths):
            self._double()
        place = self._count
        for token in _distinct_tokens(text):
            if (column := self._columns.get(token)) is not None:
                column[place] = 1
            elif (places := self._places.get(token)) is not None:
                places.append(place)
            else:
                self._places[token] = array("q", (place,))
        self._lengths[place] = len(text)
        self._count += 1

    def shared(self, text: str) -> Counts:
        """Number of tokens that each indexed text shares with `text`: (texts,), at most `len(text)`."""
        import numpy as np

        counts: Counts = np.zeros(self._count, np.min_scalar_type(len(text)))
        for token in _distinct_tokens(text):
            if (places := self._places.get(token)) is not None:
                counts[np.frombuffer(places, np.int64)] += 1
            elif (column := self._columns.get(token)) is not None:
                np.add(counts, column[: self._count], out=counts)
        return counts

    def _double(self) -> None:
        """Double the capacity, and store each token as a list or a column by the number of its texts."""
        import numpy as np

        self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        rare = [token for token, column in self._columns.items() if not self._is_common(int(column.sum()))]
        for token in rare:
            self._places[token] = array("q", np.flatnonzero(self._columns.pop(token)).tolist())
        for token, column in self._columns.items():
            self._columns[token] = np.concatenate([column, np.zeros_like(column)])
        for token in [token for token, places in self._places.items() if self._is_common(len(places))]:
            column = self._columns[token] = np.zeros(len(self._lengths), np.uint8)
            column[np.frombuffer(self._places.pop(token), np.int64)] = 1

    def _is_common(self, texts: int) -> bool:
        return texts * COMMON > self._count


def _distinct_tokens(text: str) -> list[Token]:
    """The tokens of a text, repetitions numbered, so that all are distinct."""
    if len(set(text)) == len(text):
        return list(text)
    counts: dict[str, int] = {}
    tokens: list[Token] = []
    for character in text:
        count = counts.get(character, 0)
        tokens.append((character, count) if count else character)
        counts[character] = count + 1
    return tokens
