"""Style of answers: length, formatting, openings, and whether they stop.

Style is learned sooner than facts (Gudibande et al., 2023, arXiv 2305.15717), so it is measured apart from similarity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Literal

from distill.compare.metrics import Measure, NoOptions, Sample, Scores
from distill.text.tokens import n_grams

N = 4
"""Length of repeated word sequences (4 as in Welleck et al., 2020)."""
MIN_PAIRS = 6
"""Least prompts with two answers of the teacher to take its own spread from."""

_FENCE = re.compile(r"^```.*?(?:^```|\Z)", re.MULTILINE | re.DOTALL)
_LIST = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}#{1,6} +\S|^\*\*[^*\n]+\*\*:?[ \t]*$", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_SENTENCE = re.compile(r"[.!?…。！？]{1,8}(?=\s|$|[\"'”’)\]])")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_HEDGES = re.compile(
    r"\b(?:may|might|could|perhaps|possibly|probably|likely|generally|usually|typically|often|sometimes|tends? to|"
    r"in (?:most|many|some) cases|it depends|depending on|it(?:'s| is) (?:important|worth) (?:to note|noting)|"
    r"keep in mind|in general|seems?|appears?)\b",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"\W*(?:sure|certainly|of course|absolutely|great question|good question|no problem|happy to help|"
    r"here (?:is|are)|here's|okay|as an? (?:ai|language|large)|i(?:'m| am) (?:sorry|just an?|an? (?:ai|language))|"
    r"thank you for|hello|hi)\b",
    re.IGNORECASE,
)

FEATURES: Mapping[str, tuple[Callable[[str, int], float], float]] = {
    "words": (lambda text, count: math.log1p(count), 0.1),
    "sentence_words": (lambda text, count: math.log1p(count / max(1, len(_SENTENCE.findall(text)))), 0.1),
    "paragraphs": (lambda text, count: math.log1p(len(_PARAGRAPH.findall(text.strip()))), 0.1),
    "lists": (lambda text, count: 100 * len(_LIST.findall(text)) / count, 0.5),
    "headings": (lambda text, count: 100 * len(_HEADING.findall(text)) / count, 0.25),
    "bold": (lambda text, count: 100 * len(_BOLD.findall(text)) / count, 0.25),
    "code": (lambda text, count: sum(map(len, _FENCE.findall(text))) / len(text), 0.02),
    "hedges": (lambda text, count: 100 * len(_HEDGES.findall(text)) / count, 0.25),
    "exclamations": (lambda text, count: 100 * text.count("!") / count, 0.25),
    "questions": (lambda text, count: 100 * text.count("?") / count, 0.25),
    "opening": (lambda text, count: float(_OPENING.match(text) is not None), 0.1),
}
"""Style features of an answer from its text and number of words, each with its least unit: a feature that the teacher
never shows has no spread to measure with. Densities are per 100 words."""


class Style:
    """Length, formatting, phrases, stopping and repetition of an answer."""

    Options = NoOptions
    scope: Literal["text"] = "text"
    measures = (
        Measure(
            name="style_distance",
            title="Distance from the teacher's style",
            unit="×",
            better="lower",
            explanation="How far an answer's length, sentences, paragraphs, lists, headings, bold, code, hedges, "
            "exclamations, questions and opening lie from those of the teacher's answer to the same prompt, on average,"
            " in units of the teacher's own second answers: about 1 is as near as the teacher is to itself. Where it "
            "answered once, the unit is its spread between prompts.",
        ),
        Measure(
            name="length_ratio",
            title="Length against the teacher's",
            unit="×",
            better="near 1",
            explanation="Words of the answer over words of the teacher's answer to the same prompt; "
            "both may have been cut at the token limit.",
        ),
        Measure(
            name="list_items",
            title="List items",
            unit="a hundred words",
            better="teacher",
            explanation="Lines that begin with a bullet or a number.",
        ),
        Measure(
            name="hedges",
            title="Hedges",
            unit="a hundred words",
            better="teacher",
            explanation="Words that leave room, such as may, often, it depends; English only.",
        ),
        Measure(
            name="stock_opening",
            title="Stock openings",
            unit="share",
            better="teacher",
            explanation="Answers that begin with Sure, Certainly, Here is, As an AI, I am sorry and the like; English "
            "only.",
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

    def __init__(self, options: NoOptions | None = None) -> None:
        self.options = options or NoOptions()
        self._units = {name: unit for name, (_, unit) in FEATURES.items()}

    def prepare(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Take the units of the distance from the spread of the teacher's own answers."""
        again = [
            [features(sample.answer.text), features(sample.reference.text)]
            for sample in samples
            if sample.model == "teacher_again" and sample.reference is not None and sample.answer.text.strip()
        ]
        first = [features(sample.answer.text) for sample in samples if sample.model == "teacher"]
        for name, (_, least) in FEATURES.items():
            if len(again) >= MIN_PAIRS:
                unit = fmean(abs(one[name] - other[name]) for one, other in again)
            else:
                unit = pstdev([one[name] for one in first]) if first else 0.0
            self._units[name] = max(least, unit)

    def score(self, sample: Sample) -> Scores:
        """`style_distance` and `length_ratio` (0 or more), densities, `stopped` (0, 1), `repetition` (0–1).

        Excluded: comparisons with an absent or empty answer of the teacher, and `stopped` where it is not known how a
        recorded answer ended.
        """
        answer_words = sample.answer.text.split()
        values = features(sample.answer.text)
        names = (("list_items", "lists"), ("hedges", "hedges"), ("stock_opening", "opening"))
        scores = {name: values[feature] for name, feature in names} if answer_words else {}
        if sample.answer.finish != "unknown":
            scores["stopped"] = float(sample.answer.finish == "stop")
        if sample.reference is not None and (reference := sample.reference.text.split()):
            scores["length_ratio"] = len(answer_words) / len(reference)
            if sample.model != "teacher":
                scores["style_distance"] = self._distance(values, features(sample.reference.text))
        if len(answer_words) >= N:
            scores["repetition"] = repetition(answer_words)
        return scores

    def _distance(self, values: Mapping[str, float], reference: Mapping[str, float]) -> float:
        return fmean(abs(values[name] - reference[name]) / unit for name, unit in self._units.items())


def features(text: str) -> dict[str, float]:
    """The style features of a text by name in `FEATURES`; all 0 for an empty text."""
    count = len(text.split())
    return {name: measure(text, count) if count else 0.0 for name, (measure, _) in FEATURES.items()}


def repetition(tokens: list[str]) -> float:
    """1 − distinct / all 4-grams of a list of four tokens or more."""
    grams = list(n_grams(tokens, N))
    return 1 - len(set(grams)) / len(grams)
