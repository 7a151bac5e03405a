"""Questions of a batch: pending, as lines of a file, and as the journal has them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from distill.core.console import duration
from distill.engine.batch.client import BatchStatus
from distill.engine.journal.keys import Question
from distill.engine.journal.records import BatchRecord, Bill
from distill.engine.journal.store import Journal, to_request
from distill.types import Endpoint

LINES_PER_COMMIT = 500
"""The most answers that are committed together."""
BYTES_PER_COMMIT = 16 * 2**20
"""Bytes of lines from which they are committed."""
QUEUE_FULL = "token_limit_exceeded"
"""The code of a batch refused because too many tokens are queued (openai-python issue 2084 shows one)."""
PENDING = "pending"
"""The failure reason that the journal has for a question in a batch until it is answered."""


@dataclass(frozen=True, slots=True)
class PendingQuestion:
    """A question that the journal cannot answer yet."""

    name: str
    """The model's name in the engine."""
    question: Question


@dataclass(frozen=True, slots=True)
class Line:
    """A pending question as a line of a batch file."""

    miss: PendingQuestion
    path: str
    size: int
    """Bytes in the input file."""
    most: Bill


def questions_of(journal: Journal, keys: Collection[str]) -> dict[str, Question]:
    """The questions with these keys, read from the journal."""
    return {
        of: Question(to_request(json.loads(request)), Endpoint(**json.loads(endpoint)), request, of)
        for of, request, endpoint in journal.questions()
        if of in keys
    }


def progress_of(batches: Sequence[BatchRecord], statuses: Sequence[BatchStatus]) -> str:
    """The state of open batches in a few words; empty where there is none. `statuses` are those that are known."""
    if not batches:
        return ""
    done, failures = sum(one.completed for one in statuses), sum(one.failed for one in statuses)
    notes = [f"{len(batches)} {'batch' if len(batches) == 1 else 'batches'} open"]
    notes += [f"{done} of {sum(len(batch.sends) for batch in batches)} requests done"]
    notes += [f"{failures} failed"] if failures else []
    oldest = datetime.fromisoformat(min(batch.created for batch in batches))
    age_seconds = max(0.0, (datetime.now(UTC) - oldest).total_seconds())  # a clock may have been set back
    return ", ".join([*notes, f"submitted {duration(age_seconds)} ago"])
