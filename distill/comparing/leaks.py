"""Finds held-out prompts that the student has seen in training, so that clean and leaked ones can be read apart."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from distill.comparing.found import Found
from distill.novelty import comparable
from distill.rows import read_sessions

RUN = 8
"""Words in a row that count as copied; GPT-3 looked for runs of 8 to 13 (Brown et al. 2020, arXiv 2005.14165)."""
LEAKED = 0.5
"""The share of a prompt's runs in one training row from which the prompt counts as leaked."""

Runs: TypeAlias = frozenset[tuple[str, ...]]


def tell_leaks(found: Found, kept: Path) -> None:
    """Say of each prompt how much of it stands in the training row that holds most: `leak` in its line.

    Words are compared without case and punctuation, in any script; a prompt of fewer than 8 words is one run, and must
    be a whole turn. It sees copies, not paraphrases. Without kept.jsonl nothing is said.
    """
    if not kept.is_file():
        return
    asked = [_runs(comparable(_asked(found, index))) for index in range(len(found.prompts))]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, runs in enumerate(asked):
        for run in runs:
            holders[run].append(index)
    most = [(0.0, "")] * len(asked)
    for session in read_sessions(kept):
        for index, count in _shared(session.messages, holders).items():
            most[index] = max(most[index], (count / len(asked[index]), session.id), key=lambda item: item[0])
    for index, (share, row) in enumerate(most):
        found.tell(index, "leak", {"overlap": round(share, 4), "leaked": share >= LEAKED, "row": row or None})


def _asked(found: Found, index: int) -> str:
    prompt = found.prompts[index]
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


def leaks(found: Found) -> dict[str, Any] | None:
    """How many of the prompts that all metrics look at are leaked; `None` where nothing is known of training rows."""
    shared = [found.more[index] for index in found.shared if index in found.more]
    told = [more["leak"] for more in shared if "leak" in more]
    if not told:
        return None
    return {
        "leaked": sum(one["leaked"] for one in told),
        "prompts": len(told),
        "threshold": LEAKED,
        "explanation": f"prompts of whose {RUN}-word runs at least {LEAKED:.0%} stand in one row that the student was "
        "trained on; each measure is given without them too",
    }
