"""Records written to the journal: sends, answers, failures and batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from distill.core.redaction import strike
from distill.engine.journal.keys import endpoint_json
from distill.types import Completion, Endpoint, Failure, Usage

_ANSWER = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
FAILURE = "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INTENT = (
    "INSERT INTO intents (key, attempt, stage, role, model, prompt_tokens, completion_tokens, usd, created)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SETTLE = "UPDATE intents SET outcome = ?, prompt_tokens = ?, completion_tokens = ?, usd = ? WHERE id = ?"
_SETTLE_AS_IS = "UPDATE intents SET outcome = ? WHERE id = ?"
FORGET = "DELETE FROM failures WHERE key = ?"
_BATCH = "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_BATCH_OF_LAST = (
    "INSERT INTO batches SELECT ?, ?, ?, ?, ?, ?, json_group_object(key, id), ?, ?"
    " FROM (SELECT key, id FROM intents ORDER BY id DESC LIMIT ?)"
)

Statement: TypeAlias = tuple[str, tuple[Any, ...]]
Change: TypeAlias = tuple[Statement, ...]
"""Statements written together, in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendCost:
    """Tokens and USD of one kind of send."""

    stage: str
    role: str
    """The teacher's name in the engine, `teacher` where there is one only."""
    model: str
    outcome: Literal["kept", "retried", "wasted", "in flight"]
    """`kept`: the answer is in the journal. `retried`: no answer, but a later send brought one. `wasted`: no answer at
    all, or a second one. `in flight`: begun without a known end, as at a kill; charged with its worst case."""
    sends: int
    prompt_tokens: int
    completion_tokens: int
    """As reported; the worst case where a send may have been billed and nothing was reported."""
    usd: float
    """At the price of the time of buying."""
    unpriced: Usage
    """Tokens of sends that had no price at that time; not in `usd`."""


@dataclass(frozen=True, slots=True)
class StageSends:
    """A stage's sends so far, over all invocations."""

    sends: int = 0
    usd: float = 0.0
    """At the price of the time of buying; sends that had none count nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch job at a provider."""

    name: str
    """Our name, which the provider keeps as metadata, so that a job is found whose id was never recorded."""
    stage: str
    role: str
    state: str
    file_id: str | None = None
    batch_id: str | None = None
    sends: Mapping[str, int] = field(default_factory=dict)
    """Key of each question to the number of its send."""
    detail: str = ""
    created: str = ""


@dataclass(frozen=True, slots=True)
class Bill:
    """Actual or worst-case cost of a send."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    usd: float | None = None
    """`None` without a price."""


def intention(
    key: str, attempt: int, *, stage: str = "", role: str = "", model: str = "", most: Bill = Bill()
) -> Change:
    """A send that is about to begin. Its cost is `most` until it is settled, so a kill in flight is charged in full."""
    row = (key, attempt, stage, role, model, most.prompt_tokens, most.completion_tokens, most.usd, _now())
    return ((_INTENT, row),)


def settled(send: int, bill: Bill | None, outcome: str) -> Statement:
    """A send's outcome (`kept`, `free` or `charged`) and its cost; without a bill, the worst case stays."""
    if bill is None:
        return _SETTLE_AS_IS, (outcome, send)
    return _SETTLE, (outcome, bill.prompt_tokens, bill.completion_tokens, bill.usd, send)


def answered(
    completion: Completion,
    request_json: str,
    kind: str,
    endpoint: Endpoint,
    *,
    stage: str = "",
    raw_json: str | None = None,
) -> Change:
    """An answer; the first one with a key stays, and an earlier failure with that key is deleted.

    `raw_json` is the completion's `raw` as JSON, where the caller has it. Known secrets in the request are struck.
    """
    usage = completion.usage
    row = (
        completion.key, strike(request_json), endpoint_json(endpoint), kind, completion.text, completion.finish,
        None if usage is None else usage_json(usage), raw_json or json.dumps(completion.raw),
        completion.loglikelihood,
        stage, _now(),
    )  # fmt: skip
    return (_ANSWER, row), (FORGET, (completion.key,))


def bare(change: Change) -> Change:
    """A change with only its answers' texts, for when the rest cannot be stored; its sends cost their worst case."""
    return tuple(_bare(statement, values) for statement, values in change)


def _bare(statement: str, values: tuple[Any, ...]) -> Statement:
    if statement is _ANSWER:
        key, request, endpoint, kind, text, finish, _, _, _, stage, created = values
        return _ANSWER, (key, request, endpoint, kind, text, finish, None, "{}", None, stage, created)
    return (_SETTLE_AS_IS, (values[0], values[-1])) if statement is _SETTLE else (statement, values)


def usage_json(usage: Usage) -> str:
    """The usage as the table has it."""
    return f'{{"prompt_tokens": {usage.prompt_tokens}, "completion_tokens": {usage.completion_tokens}}}'


def failed(failure: Failure, request_json: str, endpoint: Endpoint, *, stage: str = "") -> Change:
    """A failure, permanent or not."""
    row = (
        failure.key, strike(request_json), endpoint_json(endpoint), failure.reason, failure.detail, failure.attempts,
        int(not failure.transient), stage, _now(),
    )  # fmt: skip
    return ((FAILURE, row),)


def prepared(batch: BatchRecord, intentions: Sequence[Change]) -> Change:
    """A new batch and its sends, one per question, in one change, as it refers to the numbers that they get."""
    of_batch = (batch.name, batch.stage, batch.role, batch.state, batch.file_id, batch.batch_id)
    row = (*of_batch, batch.detail, batch.created or _now(), len(intentions))
    return *(statement for intention in intentions for statement in intention), (_BATCH_OF_LAST, row)


def batched(batch: BatchRecord) -> Statement:
    """A batch's present state, in place of the one before."""
    row = (
        batch.name, batch.stage, batch.role, batch.state, batch.file_id, batch.batch_id, json.dumps(dict(batch.sends)),
        batch.detail, batch.created or _now(),
    )  # fmt: skip
    return _BATCH, row


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
