"""Overlap of held-out prompts with training rows: leaks, and coverage of the prompts that the student loses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from distill.compare.results import Prompt, shared_prompts
from distill.core.jsonl import read_sessions
from distill.text.prompt_frames import PromptFrames
from distill.text.tfidf import NearRow, nearest
from distill.text.tokens import n_grams
from distill.text.words import comparable, whole
from distill.types import Message, Session

NEAREST = 3
SAMPLE = 200
"""Training rows sampled to see how near the rows of this set lie to each other."""
TOO_FAR = 0.1
"""A lost prompt was not taught if it is farther from training than all but this share of training rows are."""
SHOWN = 500
"""Characters of a training prompt in answers.jsonl."""


def coverage(
    prompts: Sequence[Prompt], outcomes: Mapping[int, Mapping[str, Any]], kept: Path
) -> tuple[dict[int, dict[str, Any]], dict[str, Any] | None]:
    """By prompt, the nearest training rows and the reason of a loss; and a summary by category.

    Prompts are compared by their words (TF-IDF). Empty and `None` without training rows or prompts.
    """
    rows = [(session.id, asked_of(session)) for session in read_sessions(kept)] if kept.is_file() else []
    indices = shared_prompts(prompts)
    if not rows or not indices:
        return {}, None
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    questions = [prompts[index].question for index in indices]
    texts, own_ids = [*questions, *(text for _, text in sample)], [*[None] * len(indices), *(id for id, _ in sample)]
    near = nearest(texts, rows, count=NEAREST, own_ids=own_ids)
    reach = _reach([_similarity(one) for one in near[len(indices) :]])
    entries = {
        index: _nearness(one, reach, is_lost=outcomes.get(index, {}).get("value") == "loss")
        for index, one in zip(indices, near, strict=False)
    }
    return entries, _summary(prompts, entries, reach)


def asked_of(session: Session) -> str:
    """All the user's turns in a session."""
    return "\n".join(message.content for message in session.messages if message.role == "user")


def _similarity(near: list[NearRow]) -> float:
    return near[0].similarity if near else 0.0


def _reach(similarities: list[float]) -> float:
    """The similarity to the nearest row that all but the farthest tenth of training rows reach."""
    return sorted(similarities)[int(TOO_FAR * len(similarities))] if similarities else 0.0


def _nearness(near: list[NearRow], reach: float, *, is_lost: bool) -> dict[str, Any]:
    far = _similarity(near) < reach or not near
    return {
        "nearest": [{"id": one.id, "similarity": round(one.similarity, 4), "prompt": one.text[:SHOWN]} for one in near],
        "similarity": round(_similarity(near), 4),
        "verdict": ("not taught" if far else "taught and failed") if is_lost else "fine",
    }


def _summary(prompts: Sequence[Prompt], entries: Mapping[int, dict[str, Any]], reach: float) -> dict[str, Any]:
    members: dict[str, list[dict[str, Any]]] = {}
    for index, entry in entries.items():
        members.setdefault(prompts[index].category, []).append(entry)
    return {
        "reach": round(reach, 4),
        "categories": {name: _counts(some) for name, some in sorted(members.items())},
        "explanation": "likeness of words between a prompt and the nearest training prompt (TF-IDF cosine); below "
        f"{reach:.2f}, which nine of ten training rows have with their own nearest one, a lost prompt was not taught",
    }


def _counts(entries: list[dict[str, Any]]) -> dict[str, Any]:
    verdicts = [one["verdict"] for one in entries]
    return {
        "prompts": len(entries),
        "losses": len(entries) - verdicts.count("fine"),
        "not_taught": verdicts.count("not taught"),
        "taught_and_failed": verdicts.count("taught and failed"),
        "mean_similarity": round(fmean(one["similarity"] for one in entries), 4),
    }


RUN = 8
"""Consecutive words that count as copied; GPT-3 used runs of 8 to 13 (Brown et al. 2020, arXiv 2005.14165)."""
LEAKED = 0.5
"""Least share of a prompt's runs in one training row for the prompt to count as leaked."""

Runs: TypeAlias = frozenset[tuple[str, ...]]


def leaks(prompts: Sequence[Prompt], kept: Path) -> dict[int, dict[str, Any]]:
    """By prompt, its largest share in one training row: `overlap`, `leaked` and the `row`.

    Words of any script are compared without case and punctuation; a prompt of fewer than 8 words is one run and must
    equal a whole turn, signs such as `+` included. What many prompts share, such as a template, is left out. Finds
    copies, not paraphrases. Empty without kept.jsonl.
    """
    if not kept.is_file():
        return {}
    questions = [prompt.question for prompt in prompts]
    frames = PromptFrames(chain(questions, (session.prompt for session in read_sessions(kept))))
    runs_of = [_runs(frames.without(question).text) for question in questions]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, runs in enumerate(runs_of):
        for run in runs:
            holders[run].append(index)
    most = [(0.0, "")] * len(runs_of)
    for session in read_sessions(kept):
        for index, count in _shared_runs(session.messages, holders, frames).items():
            most[index] = max(most[index], (count / len(runs_of[index]), session.id), key=lambda item: item[0])
    return {
        index: {"overlap": round(share, 4), "leaked": share >= LEAKED, "row": row or None}
        for index, (share, row) in enumerate(most)
    }


def _runs(text: str) -> Runs:
    tokens = comparable(text)
    if len(tokens) < RUN:
        return frozenset([whole(text)] if tokens else [])
    return frozenset(n_grams(tokens, RUN))


def _shared_runs(
    messages: Sequence[Message], holders: dict[tuple[str, ...], list[int]], frames: PromptFrames
) -> dict[int, int]:
    """Number of each prompt's runs that a row contains."""
    asked = [frames.without(message.content).text for message in messages if message.role == "user"]
    answered = [message.content for message in messages if message.role == "assistant"]
    runs = {run for text in (*asked, *answered) for run in _runs(text)}
    counts: dict[int, int] = defaultdict(int)
    for run in runs & holders.keys():
        for index in holders[run]:
            counts[index] += 1
    return counts


def leak_summary(prompts: Sequence[Prompt], leaked: Mapping[int, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Number of leaked prompts among those that all metrics score; `None` without training rows."""
    entries = [leaked[index] for index in shared_prompts(prompts) if index in leaked]
    if not entries:
        return None
    return {
        "leaked": sum(one["leaked"] for one in entries),
        "prompts": len(entries),
        "threshold": LEAKED,
        "explanation": f"prompts of whose {RUN}-word runs at least {LEAKED:.0%} stand in one row that the student was "
        "trained on; each measure is given without them too",
    }
