"""Whether answers are as long as the teacher's, end by themselves, and do not go round in circles."""

from __future__ import annotations

from typing import Literal

from distill import recipe
from distill.metrics import Measure, Sample, Scores
from distill.text import words

N = 4
"""Words in a row that count as repeated when they come again (Welleck et al., 2020, use 4 too)."""


class Style:
    """Length, stopping and repetition of an answer."""

    class Options(recipe.Options):
        """None."""

    scope: Literal["text"] = "text"
    measures = (
        Measure(
            name="length_ratio",
            title="Length against the teacher's",
            unit="×",
            better="near 1",
            explanation="Words of the answer over words of the teacher's answer to the same prompt; "
            "both may have been cut at the token limit.",
        ),
        Measure(
            name="stopped",
            title="Stops by itself",
            unit="share",
            better="higher",
            explanation="Share of answers that end with the end token rather than at the token limit.",
        ),
        Measure(
            name="repetition",
            title="Repetition",
            unit="share",
            better="lower",
            explanation=f"Share of an answer's {N}-word sequences that it has already used (1 − distinct / all); "
            f"answers of fewer than {N} words are left out.",
        ),
    )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def score(self, sample: Sample) -> Scores:
        """`length_ratio` (0 or more), `stopped` (0, 1), `repetition` (0–1).

        Left out: a length against no or an empty answer of the teacher, and the end of an answer that was recorded
        without how it ended.
        """
        said = words(sample.answer.text)
        reference = words(sample.reference.text) if sample.reference is not None else []
        scores = {} if sample.answer.finish == "unknown" else {"stopped": float(sample.answer.finish == "stop")}
        if reference:
            scores["length_ratio"] = len(said) / len(reference)
        if len(said) >= N:
            scores["repetition"] = repetition(said)
        return scores


def repetition(tokens: list[str]) -> float:
    """1 − distinct / all of the token list's 4-grams; it needs four tokens or more."""
    grams = list(zip(*(tokens[start:] for start in range(N)), strict=False))
    return 1 - len(set(grams)) / len(grams)
