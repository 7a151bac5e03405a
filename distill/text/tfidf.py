"""TF-IDF cosine similarity of texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, TypeAlias

from distill.text.words import comparable

if TYPE_CHECKING:
    from typing import Any

    import numpy

    Row: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.float64]]"
    Vectors: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.float32]]"


COMMON = 0.2
"""A word in more than this share of the rows, and in more than `COMMON_ROWS` of them, is left out."""
COMMON_ROWS = 20
DIMENSIONS = 256
"""Length of a hashed vector: 100 MB for 100,000 rows; a cosine is off by about 1/16 (Weinberger et al. 2009)."""
SCALE = 4_000
"""Norm of a hashed vector, whose values are whole numbers: products of two stay below 2^24, so that float32 adds them
up exactly in any order of the rows or terms; rounding leaves a cosine off by 0.001 at most."""


@dataclass(frozen=True, slots=True)
class NearRow:
    """A row with its similarity."""

    id: str
    similarity: float
    """Cosine of the TF-IDF vectors, 0 to 1."""
    text: str


@dataclass(slots=True)
class Weights:
    """Inverse document frequencies: log((rows + 1) / (rows with it + 1)) + 1 (scikit-learn's smooth form)."""

    rows: int = 0
    holders: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Weights:
        """Count the words of all rows."""
        weights = cls()
        for text in texts:
            weights.rows += 1
            weights.holders.update(set(comparable(text)))
        return weights

    def vector(self, text: str) -> dict[str, float]:
        """A text as a vector of length 1: (1 + log count) · weight of each word; empty where all words are common."""
        counts = Counter(word for word in comparable(text) if not self._is_common(word))
        raw = {word: (1 + math.log(count)) * self.weight(word) for word, count in counts.items()}
        length = math.sqrt(sum(value * value for value in raw.values()))
        return {word: value / length for word, value in raw.items()} if length else {}

    def weight(self, word: str) -> float:
        """The inverse document frequency of a word."""
        return math.log((self.rows + 1) / (self.holders[word] + 1)) + 1

    def _is_common(self, word: str) -> bool:
        return self.holders[word] > max(COMMON_ROWS, COMMON * self.rows)


def hashed_vectors(texts: Sequence[Sequence[str]], hash64: Callable[[str], int]) -> Vectors:
    """TF-IDF of each text's tokens in whole numbers, sign and place of a token by its 64-bit hash.

    Shape (texts, DIMENSIONS); the norm of each row is about `SCALE`, 0 without tokens.
    """
    import numpy

    weights = Weights(len(texts), Counter(token for text in texts for token in set(text)))
    hashes = {token: hash64(token) for token in weights.holders}
    signed = {token: weights.weight(token) * (1 if hash >> 63 else -1) for token, hash in hashes.items()}
    vectors = numpy.zeros((len(texts), DIMENSIONS), dtype=numpy.float32)
    for row, text in enumerate(texts):
        counts = sorted(Counter(text).items())
        places = numpy.array([hashes[token] % DIMENSIONS for token, _ in counts], dtype=numpy.int64)
        values = [signed[token] * (1 + math.log(count)) for token, count in counts]
        vectors[row] = numpy.bincount(places, weights=values, minlength=DIMENSIONS)
    norms = numpy.linalg.norm(vectors, axis=1, keepdims=True)
    return numpy.asarray(numpy.rint(vectors * (SCALE / numpy.maximum(norms, numpy.float32(1e-12)))))


def cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The cosine of two vectors of length 1 as `Weights.vector` makes them."""
    if len(other) < len(one):
        one, other = other, one
    return sum(value * other[word] for word, value in one.items() if word in other)


def nearest(
    texts: Sequence[str], rows: Sequence[tuple[str, str]], *, count: int = 3, own_ids: Sequence[str | None] = ()
) -> list[list[NearRow]]:
    """The `count` nearest rows (id and text) of each text, the nearest first.

    `own_ids` names, for texts that are rows themselves, the row that is left out. Equal rows keep the order of the
    file. Costs one vector addition of len(texts) numbers for each word of each row.
    """
    import numpy

    weights = Weights.of(text for _, text in rows)
    columns: dict[str, Row] = {}
    for index, text in enumerate(texts):
        for word, value in weights.vector(text).items():
            if word not in columns:
                columns[word] = numpy.zeros(len(texts))
            columns[word][index] = value
    own_places = {(row, index) for index, row in enumerate(own_ids) if row is not None}
    best: list[list[tuple[float, int, str, str]]] = [[] for _ in texts]
    for place, (id, text) in enumerate(rows):
        cosines = _dots(weights.vector(text), columns, len(texts))
        for index in numpy.flatnonzero(cosines).tolist():
            if (id, index) not in own_places:
                heappush(best[index], (float(cosines[index]), -place, id, text))
                if len(best[index]) > count:
                    heappop(best[index])
    return [[NearRow(id, min(1.0, value), text) for value, _, id, text in sorted(each, reverse=True)] for each in best]


def _dots(vector: Mapping[str, float], columns: Mapping[str, Row], texts: int) -> Row:
    """The cosine of a row with each text: (texts,); 0 where they share no word."""
    import numpy

    total: Row = numpy.zeros(texts)
    for word, value in vector.items():
        if word in columns:
            total += value * columns[word]
    return total
