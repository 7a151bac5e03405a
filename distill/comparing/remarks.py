"""What a reader must know of the prompts and answers before any number of them: repeats, empty texts, the same text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from distill.comparing import NAMES
from distill.comparing.found import Found
from distill.comparing.prompts import same_questions
from distill.metrics import Measure, Model

ALIKE = 0.2
"""The share of prompts from which it is told that two models gave the same text."""
COMPARED: tuple[Model, ...] = ("base", "student", "teacher")


def remarks(found: Found) -> Iterator[str]:
    """A line for each thing that weakens the numbers."""
    prompts = len(found.shared)
    if repeats := same_questions([found.prompts[index] for index in found.shared]):
        yield (
            f"{repeats} of {prompts} prompts ask what another one asks; they are no independent evidence, so the "
            "intervals are too narrow"
        )
    texts = {model: _texts(found, model) for model in COMPARED}
    for model, each in texts.items():
        if empty := sum(not text for text in each.values()):
            yield f"{NAMES[model]} gave an empty answer to {empty} of {len(each)} prompts"
    for one, other in combinations(COMPARED, 2):
        both = texts[one].keys() & texts[other].keys()
        same = sum(texts[one][index] == texts[other][index] != "" for index in both)
        if both and same >= ALIKE * len(both):
            yield f"{NAMES[one]} and {NAMES[other]} gave the same answer to {same} of {len(both)} prompts"


def _texts(found: Found, model: Model) -> dict[int, str]:
    shared = set(found.shared)
    return {index: answer.text for index, answer in found.answers.get(model, {}).items() if index in shared}


def unmeasured(measures: Sequence[Measure], entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line on the measures that no answer has a value for."""
    if titles := [one.title for one in measures if one.name in entries and not entries[one.name]["by"]]:
        yield f"no answer has a value by: {', '.join(titles)}; what they look at is not known of these answers"
