"""Share of an answer recited from the training rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from distill.compare.metrics import Measure, NoOptions, Sample, Scores
from distill.core.jsonl import read_sessions
from distill.text.tokens import n_grams
from distill.text.words import comparable
from distill.types import Model

RUN = 8
"""Words of the shortest span that counts; shorter ones are common phrases."""

LEARNERS: tuple[Model, ...] = ("base", "previous", "student")
"""The models that are scored; the teacher's answers are the training data itself."""

Run: TypeAlias = tuple[str, ...]


class Copied:
    """The longest run of words that stands in training answers, and neither in the prompt nor in the teacher's."""

    Options = NoOptions
    scope: Literal["text"] = "text"
    measures = (
        Measure(
            name="copied_words",
            title="Longest span copied from training",
            unit="words",
            better="lower",
            explanation=f"Words of an answer's longest span of {RUN} words or more that stands in training answers, 0 "
            "without one; what stands in the prompt or in the teacher's answer to it is not counted. Words are "
            "compared without case and punctuation. The base shows what is everybody's phrase.",
        ),
    )

    def __init__(self, options: NoOptions | None = None) -> None:
        self.options = options or NoOptions()
        self._trained: frozenset[Run] | None = None

    def prepare(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Find which runs of the answers stand in kept.jsonl."""
        path = folder / "kept.jsonl"
        if not path.is_file():
            self._trained = None
            return
        runs = {run for sample in samples if sample.model in LEARNERS for run in _runs(sample.answer.text)}
        self._trained = frozenset(
            run
            for session in read_sessions(path)
            for message in session.messages
            if message.role == "assistant"
            for run in _runs(message.content)
            if run in runs
        )

    def score(self, sample: Sample) -> Scores:
        """`copied_words`, 0 or at least 8; none without kept.jsonl, of the teacher, or of an empty answer."""
        if self._trained is None or sample.model not in LEARNERS or not sample.answer.text.strip():
            return {}
        quotable = {run for message in sample.messages for run in _runs(message.content)}
        quotable.update(_runs(sample.reference.text) if sample.reference is not None else ())
        longest = length = 0
        for run in _runs(sample.answer.text):
            length = length + 1 if run in self._trained and run not in quotable else 0
            longest = max(longest, length)
        return {"copied_words": float(longest + RUN - 1 if longest else 0)}


def _runs(text: str) -> Iterator[Run]:
    """Every run of words, in order."""
    return n_grams(comparable(text), RUN)
