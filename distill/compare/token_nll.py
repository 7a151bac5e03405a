"""Per-token NLL of the teacher's answers under base and student, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.compare.results import Spans
from distill.types import Model


def spans(raw: Mapping[str, Any], text: str) -> Spans | None:
    """Spans from a likelihood's raw reply; tokens that share a character are merged.

    `None` for tokens that do not spell the answer `text`.
    """
    widths, nats = raw.get("widths"), raw.get("logprobs")
    if not isinstance(widths, list) or not isinstance(nats, list) or len(widths) != len(nats) or not widths:
        return None
    more = sum(widths) - len(text)
    if more not in (0, 1) or widths[0] < more:
        return None
    return _join([widths[0] - more, *widths[1:]], nats)  # some tokenizers begin with a space that is not there


def _join(widths: Sequence[int], logprobs: Sequence[float]) -> Spans:
    """Merge tokens of width 0 into the next token with a width, the last ones into the one before."""
    joined: Spans = ([], [])
    waiting = 0.0
    for width, logprob in zip(widths, logprobs, strict=True):
        waiting -= logprob
        if width:
            joined[0].append(width)
            joined[1].append(waiting)
            waiting = 0.0
    joined[1][-1] += waiting
    return joined


def by_prompt(spans_of: Mapping[Model, Mapping[int, Spans]]) -> dict[int, dict[str, Any]]:
    """The `surprise` of answers.jsonl by prompt: `{widths, nats: {base, student}}`, nats to two decimals.

    A model that splits an answer into other tokens than the first model is left out.
    """
    entries: dict[int, dict[str, Any]] = {}
    for model, spans_by_prompt in spans_of.items():
        for index, (widths, nats) in spans_by_prompt.items():
            entry = entries.setdefault(index, {"widths": widths, "nats": {}})
            if entry["widths"] == widths:
                entry["nats"][model] = [round(one, 2) for one in nats]
    return entries
