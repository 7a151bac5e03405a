"""Diversity of a model's answers across prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from distill.compare.metrics import Measure, NoOptions, Sample, Scores
from distill.text.tokens import n_grams
from distill.types import Model

N = 4
"""Words per phrase."""

Phrases: TypeAlias = frozenset[tuple[str, ...]]


class Diversity:
    """Share of phrases repeated in a model's answers to other prompts."""

    Options = NoOptions
    scope: Literal["text"] = "text"
    measures = (
        Measure(
            name="stock_phrases",
            title="Stock phrases",
            unit="share",
            better="teacher",
            explanation=f"Share of an answer's distinct {N}-word phrases that the same model uses in its answer to "
            f"another prompt; answers of fewer than {N} words are left out. It grows with the number of prompts.",
        ),
        Measure(
            name="distinct_words",
            title="Distinct words",
            unit="share",
            better="teacher",
            explanation="Distinct words of an answer over all of its words (distinct-1 of Li et al., 2016); long "
            "answers have fewer, so read it beside their length.",
        ),
    )

    def __init__(self, options: NoOptions | None = None) -> None:
        self.options = options or NoOptions()
        self._holders: dict[Model, Counter[tuple[str, ...]]] = {}

    def prepare(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Count each phrase's answers, by model."""
        self._holders = {}
        for sample in samples:
            self._holders.setdefault(sample.model, Counter()).update(_phrases(sample))

    def score(self, sample: Sample) -> Scores:
        """`stock_phrases` and `distinct_words`, 0 to 1; none of an empty answer."""
        answer_words = sample.answer.text.casefold().split()
        scores = {"distinct_words": len(set(answer_words)) / len(answer_words)} if answer_words else {}
        phrases, holders = _phrases(sample), self._holders.get(sample.model, Counter())
        if phrases:
            scores["stock_phrases"] = sum(holders[phrase] > 1 for phrase in phrases) / len(phrases)
        return scores


def _phrases(sample: Sample) -> Phrases:
    return frozenset(n_grams(sample.answer.text.casefold().split(), N))
