"""Overlap of wording between an answer and the teacher's."""

from __future__ import annotations

from typing import Literal

from distill.compare.metrics import Measure, NoOptions, Sample, Scores
from distill.text.tokens import rouge_l, rouge_tokens
from distill.text.words import comparable


class Overlap:
    """ROUGE-L of an answer to the teacher's first answer."""

    Options = NoOptions
    scope: Literal["text"] = "text"
    measures = (
        Measure(
            name="rouge_l",
            title="ROUGE-L to the teacher",
            unit="",
            better="higher",
            explanation="F-measure of the longest common subsequence with the teacher's answer, over lower-case runs "
            "of letters and digits (Lin, 2004), or words of any alphabet where the teacher's answer is mostly in "
            "another than Latin. The teacher's own second answer shows how high it can be hoped to go.",
            likeness=True,
        ),
    )

    def __init__(self, options: NoOptions | None = None) -> None:
        self.options = options or NoOptions()

    def score(self, sample: Sample) -> Scores:
        """`rouge_l`, 0 to 1; 0 for an empty answer. Excluded: the teacher itself, and empty answers of the teacher."""
        if sample.model == "teacher" or sample.reference is None:
            return {}
        tokens_of = rouge_tokens if _is_mostly_latin(sample.reference.text) else comparable
        reference = tokens_of(sample.reference.text)
        return {"rouge_l": rouge_l(tokens_of(sample.answer.text), reference)} if reference else {}


def _is_mostly_latin(text: str) -> bool:
    """Whether rouge_score's tokens hold at least half of the letters and digits."""
    return 2 * sum(map(len, rouge_tokens(text))) >= sum(map(str.isalnum, text))
