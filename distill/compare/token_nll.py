"""Per-token NLL of the teacher's answers under base and student, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from distill.compare.metrics import Model, ModelAnswer
from distill.compare.results import ComparisonResults
from distill.types import Completion, Failure, Flow, Message, Request

Spans: TypeAlias = tuple[list[int], list[float]]
"""Widths in characters, all 1 or more, which add up to the answer; and the nats of each."""


def surprise(model: Model, messages: tuple[Message, ...], reference: ModelAnswer) -> Flow[Spans | None]:
    """The answer's tokens as a model finds them; the likelihood metric's own question, so asked once.

    `None` for an empty answer, a failed request, and tokens that do not spell the answer.
    """
    if not reference.text:
        return None
    answer: Completion | Failure = yield Request(
        role=model, messages=messages, kind="likelihood", continuation=reference.text
    )
    return None if isinstance(answer, Failure) else spans(answer.raw, reference.text)


def spans(raw: Mapping[str, Any], text: str) -> Spans | None:
    """What a likelihood's raw reply says of each token; tokens that share a character are taken together."""
    widths, nats = raw.get("widths"), raw.get("logprobs")
    if not isinstance(widths, list) or not isinstance(nats, list) or len(widths) != len(nats) or not widths:
        return None
    more = sum(widths) - len(text)
    if more not in (0, 1) or widths[0] < more:
        return None
    return _joined([widths[0] - more, *widths[1:]], nats)  # some tokenizers begin with a space that is not there


def _joined(widths: Sequence[int], logprobs: Sequence[float]) -> Spans:
    """Those without a width of their own are part of the next one that has; the last ones, of the one before."""
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


def record_surprise(results: ComparisonResults, model: Model, index: int, info: Spans | None) -> None:
    """Write it into the prompt's line: `surprise: {widths, nats: {base, student}}`, nats to two decimals."""
    if info is None:
        return
    widths, nats = info
    known = results.more.get(index, {}).get("surprise") or {"widths": widths, "nats": {}}
    if known["widths"] == widths:
        known["nats"][model] = [round(one, 2) for one in nats]
        results.record(index, "surprise", known)
