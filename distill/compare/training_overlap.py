"""Overlap of held-out prompts with training rows: leaks, and coverage of the prompts that the student loses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from distill.compare.results import ComparisonResults
from distill.core.jsonl import read_sessions
from distill.text.rouge_index import comparable
from distill.text.tfidf import NearRow, nearest
from distill.types import Session

NEAREST = 3
SAMPLE = 200
"""Training rows whose own nearest neighbours show how near rows of this set lie to each other."""
TOO_FAR = 0.1
"""A prompt farther from training than all but this share of training rows are from each other was not taught."""
SHOWN = 500
"""Characters of a training prompt that are kept."""


def record_coverage(results: ComparisonResults, kept: Path) -> dict[str, Any] | None:
    """Say of each prompt which training rows are nearest and why it was lost, if it was: `coverage` in its line.

    Prompts are compared by their words (TF-IDF). Returns what scores.json says of it, by category; `None` without rows.
    """
    rows = list(_sampled(kept)) if kept.is_file() else []
    if not rows or not results.shared:
        return None
    asked = [_prompt_text(results, index) for index in results.shared]
    texts, own = [*asked, *(text for _, text in rows)], [*[None] * len(asked), *(id for id, _ in rows)]
    near, _ = nearest(texts, lambda: _prompts(kept), count=NEAREST, own_ids=own)
    reach = _reach([_similarity(one) for one in near[len(asked) :]])
    for index, one in zip(results.shared, near, strict=False):
        results.record(index, "coverage", _overlap_of(results, index, one, reach))
    return _summary(results, reach)


def _prompt_text(results: ComparisonResults, index: int) -> str:
    prompt = results.prompts[index]
    return "\n".join([*(message.content for message in prompt.messages if message.role == "user"), *prompt.later])


def asked_of(session: Session) -> str:
    """What the user says in a session."""
    return "\n".join(message.content for message in session.messages if message.role == "user")


def _prompts(kept: Path) -> Iterator[tuple[str, str]]:
    return ((session.id, asked_of(session)) for session in read_sessions(kept))


def _sampled(kept: Path) -> Iterator[tuple[str, str]]:
    """At most `SAMPLE` rows, evenly from the whole file."""
    total = sum(1 for _ in read_sessions(kept))
    step = max(1, total // SAMPLE)
    return (row for place, row in enumerate(_prompts(kept)) if place % step == 0 and place // step < SAMPLE)


def _similarity(near: list[NearRow]) -> float:
    return near[0].similarity if near else 0.0


def _reach(similarities: list[float]) -> float:
    """The similarity that all but the farthest tenth of training rows have with their nearest one."""
    return sorted(similarities)[int(TOO_FAR * len(similarities))] if similarities else 0.0


def _overlap_of(results: ComparisonResults, index: int, near: list[NearRow], reach: float) -> dict[str, Any]:
    lost = results.more.get(index, {}).get("outcome", {}).get("value") == "loss"
    far = _similarity(near) < reach or not near
    return {
        "nearest": [{"id": one.id, "similarity": round(one.similarity, 4), "prompt": one.text[:SHOWN]} for one in near],
        "similarity": round(_similarity(near), 4),
        "verdict": ("not taught" if far else "taught and failed") if lost else "fine",
    }


def _summary(results: ComparisonResults, reach: float) -> dict[str, Any]:
    members: dict[str, list[dict[str, Any]]] = {}
    for index in results.shared:
        members.setdefault(results.prompts[index].category, []).append(results.more[index]["coverage"])
    return {
        "reach": round(reach, 4),
        "categories": {name: _counts(info) for name, info in sorted(members.items())},
        "explanation": "likeness of words between a prompt and the nearest training prompt (TF-IDF cosine); below "
        f"{reach:.2f}, which nine of ten training rows have with their own nearest one, a lost prompt was not taught",
    }


def _counts(info: list[dict[str, Any]]) -> dict[str, Any]:
    verdicts = [one["verdict"] for one in info]
    return {
        "prompts": len(info),
        "losses": len(info) - verdicts.count("fine"),
        "not_taught": verdicts.count("not taught"),
        "taught_and_failed": verdicts.count("taught and failed"),
        "mean_similarity": round(fmean(one["similarity"] for one in info), 4),
    }


RUN = 8
"""Words in a row that count as copied; GPT-3 looked for runs of 8 to 13 (Brown et al. 2020, arXiv 2005.14165)."""
LEAKED = 0.5
"""The share of a prompt's runs in one training row from which the prompt counts as leaked."""

Runs: TypeAlias = frozenset[tuple[str, ...]]


def record_leaks(results: ComparisonResults, kept: Path) -> None:
    """Say of each prompt how much of it stands in the training row that holds most: `leak` in its line.

    Words are compared without case and punctuation, in any script; a prompt of fewer than 8 words is one run, and must
    be a whole turn. It sees copies, not paraphrases. Without kept.jsonl nothing is said.
    """
    if not kept.is_file():
        return
    asked = [_runs(comparable(_question_of(results, index))) for index in range(len(results.prompts))]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, runs in enumerate(asked):
        for run in runs:
            holders[run].append(index)
    most = [(0.0, "")] * len(asked)
    for session in read_sessions(kept):
        for index, count in _shared(session.messages, holders).items():
            most[index] = max(most[index], (count / len(asked[index]), session.id), key=lambda item: item[0])
    for index, (share, row) in enumerate(most):
        results.record(index, "leak", {"overlap": round(share, 4), "leaked": share >= LEAKED, "row": row or None})


def _question_of(results: ComparisonResults, index: int) -> str:
    prompt = results.prompts[index]
    return "\n".join([*(message.content for message in prompt.messages if message.role == "user"), *prompt.later])


def _runs(tokens: list[str]) -> Runs:
    if len(tokens) < RUN:
        return frozenset([tuple(tokens)] if tokens else [])
    return frozenset(zip(*(islice(tokens, start, None) for start in range(RUN)), strict=False))


def _shared(messages: Any, holders: dict[tuple[str, ...], list[int]]) -> dict[int, int]:
    """How many runs of each prompt stand in a row."""
    runs = {run for message in messages if message.role != "system" for run in _runs(comparable(message.content))}
    counts: dict[int, int] = defaultdict(int)
    for run in runs & holders.keys():
        for index in holders[run]:
            counts[index] += 1
    return counts


def leaks(results: ComparisonResults) -> dict[str, Any] | None:
    """How many of the prompts that all metrics look at are leaked; `None` where nothing is known of training rows."""
    shared = [results.more[index] for index in results.shared if index in results.more]
    info = [more["leak"] for more in shared if "leak" in more]
    if not info:
        return None
    return {
        "leaked": sum(one["leaked"] for one in info),
        "prompts": len(info),
        "threshold": LEAKED,
        "explanation": f"prompts of whose {RUN}-word runs at least {LEAKED:.0%} stand in one row that the student was "
        "trained on; each measure is given without them too",
    }
