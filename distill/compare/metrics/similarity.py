"""Semantic similarity of an answer to the teacher's, by sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill import recipe
from distill.compare.metrics import Measure, Sample, Scores
from distill.models.embeddings import embedded


class Similarity:
    """Cosine similarity of an answer's embedding to that of the teacher's first answer."""

    class Options(recipe.BaseOptions):
        """Options of `metric: similarity`."""

        path_fields: ClassVar[tuple[str, ...]] = ("model",)
        model: Annotated[str, Field(min_length=1)]
        """A local folder with config.json, a tokenizer and safetensors, such as all-MiniLM-L6-v2."""
        max_tokens: Annotated[int, Field(ge=1)] = 256
        """Tokens read of each answer (all-MiniLM-L6-v2's own limit)."""

    scope: Literal["text"] = "text"
    measures = (
        Measure(
            name="similarity",
            title="Similarity to the teacher",
            unit="cosine",
            better="higher",
            explanation="Cosine of sentence vectors with the teacher's answer to the same prompt; long answers are "
            "read to the model's limit. It says that the subject is the same, not that the answer is right.",
            likeness=True,
        ),
    )

    def __init__(self, options: Options) -> None:
        self.options = options
        self._cosines: dict[tuple[str, str], float] = {}

    def prepare(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Embed all answers at once. Raises `ModelError`, `MissingPackage`."""
        pairs = sorted({pair for sample in samples if (pair := _pair(sample)) is not None})
        texts = sorted({text for pair in pairs for text in pair})
        if not texts:
            return
        rows = embedded(
            texts, Path(self.options.model), self.options.max_tokens, key="compare.metrics.similarity.model"
        )
        place = {text: index for index, text in enumerate(texts)}
        self._cosines = {(one, other): float(rows[place[one]] @ rows[place[other]]) for one, other in pairs}

    def score(self, sample: Sample) -> Scores:
        """`similarity`, −1 to 1. Excluded: the teacher itself, and empty answers of either."""
        pair = _pair(sample)
        return {} if pair is None or pair not in self._cosines else {"similarity": self._cosines[pair]}


def _pair(sample: Sample) -> tuple[str, str] | None:
    answer = sample.answer.text.strip()
    reference = sample.reference.text.strip() if sample.reference is not None else ""
    return None if sample.model == "teacher" or not answer or not reference else (answer, reference)
