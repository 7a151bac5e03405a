"""Explains cache misses: the field in which a request differs from the nearest one in the journal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rapidfuzz.distance import Indel

from distill.engine.journal.keys import Question, endpoint_json

LONGEST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """One field in which two questions differ."""

    field: str
    """Such as `endpoint.url`, `request.sampling.temperature` or `request.messages[0].content`."""
    asked: Any
    """`None` where it is at its default."""
    journalled: Any


@dataclass(frozen=True, slots=True)
class JournalMiss:
    """A question that the journal cannot answer, and the nearest one that it can."""

    key: str
    nearest: str | None
    """Key of the nearest journalled question; `None` where the journal is empty."""
    differences: tuple[FieldDifference, ...]


def nearest(question: Question, journalled: Iterable[tuple[str, str, str]]) -> JournalMiss:
    """The journalled question that differs in the fewest fields, then in the fewest characters.

    `journalled` holds key, request and endpoint, both as canonical JSON. Looks at each once.
    """
    asked = flat(
        {"request": json.loads(question.request_json), "endpoint": json.loads(endpoint_json(question.endpoint))}
    )
    best: tuple[tuple[int, float], str, dict[str, Any]] | None = None
    for key, request, endpoint in journalled:
        other = _fields(request, endpoint)
        rank = _distance(asked, other, None if best is None else best[0][0])
        if rank is not None and (best is None or rank < best[0]):
            best = rank, key, other
    if best is None:
        return JournalMiss(question.key, None, ())
    names = sorted(name for name in asked.keys() | best[2].keys() if asked.get(name) != best[2].get(name))
    return JournalMiss(
        question.key, best[1], tuple(FieldDifference(name, asked.get(name), best[2].get(name)) for name in names)
    )


def _distance(asked: Mapping[str, Any], other: Mapping[str, Any], most: int | None) -> tuple[int, float] | None:
    """Fields that differ, and how much their texts do; `None` where more differ than in the best so far."""
    names = [name for name in asked.keys() | other.keys() if asked.get(name) != other.get(name)]
    if most is not None and len(names) > most:
        return None
    texts = [(asked.get(name), other.get(name)) for name in names]
    apart = (Indel.normalized_distance(a, b) if isinstance(a, str) and isinstance(b, str) else 1.0 for a, b in texts)
    return len(names), sum(apart)


def _fields(request: str, endpoint: str) -> dict[str, Any]:
    return flat({"request": json.loads(request), "endpoint": json.loads(endpoint)})


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of nested values by its path."""
    if isinstance(value, Mapping):
        items = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{name}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {name: value}
    return {path: leaf for key, item in items for path, leaf in flat(item, key).items()} or {name: value}


def lines(miss: JournalMiss, task: str) -> list[str]:
    """What `explain-miss` prints of one question."""
    if miss.nearest is None:
        return [f"{task}: the journal is empty, everything is asked for the first time"]
    if not miss.differences:
        return [f"{task}: the same question is journalled, but failed and may be asked again"]
    fields = "one field" if len(miss.differences) == 1 else f"{len(miss.differences)} fields"
    return [f"{task}: differs from the nearest journalled question ({miss.nearest[:12]}) in {fields}"] + [
        f"  {difference.field}: {_shown(difference.asked, difference.journalled)}" for difference in miss.differences
    ]


def _shown(asked: Any, journalled: Any) -> str:
    """Both values, from a little before their first difference on."""
    if isinstance(asked, str) and isinstance(journalled, str):
        same = next((n for n, (a, b) in enumerate(zip(asked, journalled, strict=False)) if a != b), None)
        start = max(0, (min(len(asked), len(journalled)) if same is None else same) - 20)
        return f"{_cut(asked, start)} was {_cut(journalled, start)}"
    return f"{_value(asked)} was {_value(journalled)}"


def _cut(text: str, start: int) -> str:
    end = start + LONGEST_SHOWN
    return f"{'…' if start else ''}{json.dumps(text[start:end], ensure_ascii=False)}{'…' if end < len(text) else ''}"


def _value(value: Any) -> str:
    return "its default" if value is None else json.dumps(value, ensure_ascii=False)
