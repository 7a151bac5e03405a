"""How near tasks are to the subject of their seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache

from distill.core import assets
from distill.expand.seeds import Seed, load_seeds
from distill.text.tfidf import NearRow, Weights

OFF_TOPIC = 0.1
"""Similarity to the nearest seed below which a task counts as off the seeds' topic: with 12 seeds of a bicycle shop, 1
of 25 tasks of such a shop, 45 of 80 and 125 of 192 on everyday subjects; none of those 80 with the shipped seeds, from
which they were grown."""
DIGITS = 4
"""Of a similarity: rounding makes it the same on every machine."""


class Topic:
    """The subject of a set of seeds, to which a text is as near as to the nearest seed.

    The measure is the cosine of TF-IDF vectors. Documents are the seeds and the shipped seeds on everyday subjects, so
    that words that occur in any request weigh little, also where the seeds are few; in other languages than English the
    seeds alone say which these are.
    """

    def __init__(self, seeds: Sequence[Seed]) -> None:
        self._seeds = seeds
        self._weights = Weights.of([*(seed.instruction for seed in seeds), *_everyday()])
        self._places: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, seed in enumerate(seeds):
            for word, value in self._weights.vector(seed.instruction).items():
                self._places[word].append((place, value))

    def nearest(self, text: str) -> NearRow:
        """The nearest seed and its similarity, 0 to 1; the first seed where no word is shared."""
        totals = [0.0] * len(self._seeds)
        for word, value in self._weights.vector(text).items():
            for place, other in self._places.get(word, ()):
                totals[place] += value * other
        best = max(range(len(totals)), key=totals.__getitem__)
        return NearRow(self._seeds[best].id, min(1.0, round(totals[best], DIGITS)), self._seeds[best].instruction)

    def far(self, texts: Iterable[str]) -> list[str]:
        """The texts that are off the topic (`OFF_TOPIC`), the farthest first."""
        measured = ((self.nearest(text).similarity, text) for text in texts)
        return [text for similarity, text in sorted(measured, key=lambda one: one[0]) if similarity < OFF_TOPIC]


@cache
def _everyday() -> tuple[str, ...]:
    return tuple(seed.instruction for seed in load_seeds(assets.find("prompts/seeds/general.jsonl")))
