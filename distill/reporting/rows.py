"""Rows that curation dropped, some of each reason; and what of a session was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby, zip_longest
from typing import Any

from distill import funnel
from distill.reporting.figures import Row
from distill.reporting.pairs import conversation

MAX_DROPPED = 10
MAX_TOKENS = 1_200
"""Tokens shown of a session whose mask is shown."""


def spread(rows: Iterable[Row]) -> tuple[list[Row], int]:
    """At most `MAX_DROPPED` rows, of each reason in turn, and how many there are."""
    groups: dict[Any, list[Row]] = {}
    total = 0
    for row in rows:
        total += 1
        reason = next(((verdict.get("rule"), verdict.get("reason")) for verdict in _failing(row)), None)
        group = groups.setdefault(reason, [])
        if len(group) < MAX_DROPPED:
            group.append(row)
    turns = zip_longest(*groups.values())
    return [row for turn in turns for row in turn if row is not None][:MAX_DROPPED], total


def _failing(row: Row) -> list[Row]:
    return [verdict for verdict in row.get("verdicts") or [] if not verdict.get("keep")]


def dropped_row(row: Row) -> dict[str, Any]:
    """The conversation, and what every rule had against it."""
    keys = ("rule", "reason", "value", "threshold", "neighbour")
    return {
        **conversation(row),
        "verdicts": [{key: _figure(verdict.get(key)) for key in keys} for verdict in _failing(row)],
    }


def _figure(value: Any) -> str | None:
    """What stands in a verdict, where nothing may be an empty text and a number a text."""
    return None if value in (None, "") else funnel.short(value)


def mask(masks: Row) -> dict[str, Any] | None:
    """The first session of student/masks.json in runs of tokens, trained and not in turn; None where there is none."""
    session = next(iter(masks.get("sessions") or []), None)
    if not session:
        return None
    tokens = list(zip(session.get("texts") or [], session.get("trained") or [], strict=False))
    runs = [
        {"trained": bool(trained), "text": "".join(str(text) for text, _ in each)}
        for trained, each in groupby(tokens[:MAX_TOKENS], key=lambda token: token[1])
    ]
    return {
        "id": str(session.get("id")),
        "template": masks.get("template"),
        "checked": masks.get("checked"),
        "runs": runs,
        "trained": sum(bool(trained) for _, trained in tokens),
        "tokens": len(tokens),
    }
