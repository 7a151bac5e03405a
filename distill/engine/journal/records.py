"""Records written to the journal: sends, answers, failures and batches."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, get_args

from distill.core.redaction import strike
from distill.core.surrogates import mended, parsed
from distill.engine.journal.keys import endpoint_json
from distill.engine.providers.refusals import concerns_all
from distill.engine.providers.replies import reread
from distill.types import Answer, Completion, Endpoint, Failure, Finish, Usage

_ANSWER = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
FAILURE = "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INTENT = (
    "INSERT INTO intents (key, attempt, stage, role, model, outcome, prompt_tokens, completion_tokens, usd, created,"
    " checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SETTLE = (
    "UPDATE intents SET outcome = ?1, prompt_tokens = ?2, completion_tokens = ?3, usd = ?4, checksum ="
    " row_checksum(key, attempt, stage, role, model, ?1, ?2, ?3, ?4, created) WHERE id = ?5"
)
_SETTLE_SUMMED = (
    "UPDATE intents SET outcome = ?, prompt_tokens = ?, completion_tokens = ?, usd = ?, checksum = ? WHERE id = ?"
)
_SETTLE_AS_IS = (
    "UPDATE intents SET outcome = ?1, checksum = row_checksum(key, attempt, stage, role, model, ?1, prompt_tokens,"
    " completion_tokens, usd, created) WHERE id = ?2"
)
FORGET = "DELETE FROM failures WHERE key = ?"
_BATCH = "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_BATCH_OF_LAST = (
    "INSERT INTO batches SELECT *, row_checksum(name, stage, role, state, file_id, batch_id, sends, detail, created)"
    " FROM (SELECT ? AS name, ? AS stage, ? AS role, ? AS state, ? AS file_id, ? AS batch_id,"
    " json_group_object(key, id) AS sends, ? AS detail, ? AS created"
    " FROM (SELECT key, id FROM intents ORDER BY id DESC LIMIT ?))"
)
_SUMMED = {_ANSWER, FAILURE, _INTENT, _BATCH}
"""Statements whose last value is the row's checksum."""
SHORT_RAW = 500
"""Characters of a `raw` from which it is compressed: a shorter one takes longer to compress than to write."""
LARGEST_RAW_BYTES = 64 * 2**20
"""A compressed `raw` that unpacks to more is damaged: no response is that long."""

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
    row = (key, attempt, stage, role, model, None, most.prompt_tokens, most.completion_tokens, most.usd, _now())
    return ((_INTENT, row),)


def settled(send: int, bill: Bill | None, outcome: str, intent: Change = ()) -> Statement:
    """A send's outcome (`kept`, `free`, `charged` or `unsent`) and its cost; without a bill, the worst case stays.

    With the send's `intent` its checksum is computed here; else by SQLite, whose calls into Python cost a hundred
    thousand sends seconds.
    """
    if bill is None:
        return _SETTLE_AS_IS, (outcome, send)
    cost = (outcome, bill.prompt_tokens, bill.completion_tokens, bill.usd)
    if not intent:
        return _SETTLE, (*cost, send)
    row = intent[0][1]
    return _SETTLE_SUMMED, (*cost, row_checksum(*row[:5], *cost, row[9]), send)


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
        completion.loglikelihood, stage, _now(),
    )  # fmt: skip
    return (_ANSWER, row), (FORGET, (completion.key,))


def set_aside(key: str) -> Change:
    """Move a damaged answer to the table `damaged`."""
    return (
        ("INSERT INTO damaged SELECT * FROM answers WHERE key = ?", (key,)),
        ("DELETE FROM answers WHERE key = ?", (key,)),
    )


def bare(change: Change) -> Change:
    """A change with only its answers' texts, for when the rest cannot be stored; its sends cost their worst case."""
    return tuple(_bare(statement, values) for statement, values in change)


def _bare(statement: str, values: tuple[Any, ...]) -> Statement:
    if statement is _ANSWER:
        key, request, endpoint, kind, text, finish, _, _, _, stage, created = values
        return _ANSWER, (key, request, endpoint, kind, text, finish, None, "{}", None, stage, created)
    is_settling = statement in (_SETTLE, _SETTLE_SUMMED)
    return (_SETTLE_AS_IS, (values[0], values[-1])) if is_settling else (statement, values)


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


# Checksums


def row_checksum(*values: Any) -> int:
    """CRC-32 of a row's values as they are read back: any changed byte shows."""
    return zlib.crc32("\x1f".join(map(str, values)).encode("utf-8", "surrogatepass"))


def stored(statement: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values as they are stored: an answer's response compressed, and each new row's checksum behind it."""
    if statement is _ANSWER:
        values = (*values[:7], _packed(values[7]), *values[8:])
        loglikelihood = None if values[8] is None or math.isnan(values[8]) else float(values[8])  # as it is read back
        return *values, row_checksum(*values[:8], loglikelihood, *values[9:])
    return (*values, row_checksum(*values)) if statement in _SUMMED else values


def require_sound(row: Sequence[Any]) -> None:
    """Raise `ValueError` for a row whose last value, its checksum, does not match; a row without one passes."""
    if row[-1] is not None and row[-1] != row_checksum(*row[:-1]):
        raise ValueError("its checksum does not match")


def _packed(raw_json: str) -> str | bytes:
    if len(raw_json) < SHORT_RAW:
        return raw_json
    packing = zlib.compressobj(1, zlib.DEFLATED, 13, 5)  # windows of 8 KB: larger ones take six times as long to set up
    return packing.compress(raw_json.encode("utf-8", "replace")) + packing.flush()


def _unpacked(raw: str | bytes) -> str:
    if isinstance(raw, str):  # short, or written by an earlier version
        return raw
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(raw, LARGEST_RAW_BYTES)
    if not unpacking.eof:
        raise ValueError("the response is cut off or too long")
    return data.decode("utf-8")


def read_answer(row: Sequence[Any]) -> Answer:
    """The answer in a row of the table `answers`; a failure for one that is none by today's rules.

    Raises `ValueError` for a damaged row.
    """
    require_sound(row)
    key, request, _, kind, text, finish, usage, raw, loglikelihood, *_ = row
    try:
        completion = Completion(
            key=key,
            text=text.encode("utf-8").decode("utf-8"),
            finish=finish,
            usage=None if usage is None else Usage(**json.loads(usage)),
            raw=parsed(_unpacked(raw)),
            loglikelihood=loglikelihood,
        )
    except (TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise ValueError(str(error)) from error
    if finish not in get_args(Finish) or not isinstance(completion.raw, dict):
        raise ValueError("it is no answer")
    return reread(completion, request) if kind == "answer" else completion


def read_failure(row: Sequence[Any]) -> Failure:
    """The failure in a row of the table `failures`. Raises `ValueError` for a damaged row.

    One of authentication or of the address is transient, also where an earlier version called it permanent.
    """
    require_sound(row)
    key, _, _, reason, detail, attempts, permanent, *_ = row
    if not isinstance(attempts, int):
        raise ValueError("it is no failure")
    is_transient = not permanent or concerns_all(str(reason), str(detail))
    return Failure(key=key, reason=str(reason), detail=mended(str(detail)), transient=is_transient, attempts=attempts)


def read_batch(row: Sequence[Any]) -> BatchRecord:
    """The batch in a row of the table `batches`. Raises `ValueError` for a damaged row."""
    require_sound(row)
    name, stage, role, state, file_id, batch_id, sends, detail, created, _ = row
    document = json.loads(sends) if isinstance(sends, str) else None
    if not isinstance(document, dict) or datetime.fromisoformat(created).tzinfo is None:
        raise ValueError("it is no batch")
    return BatchRecord(
        name=name, stage=stage, role=role, state=state, file_id=file_id, batch_id=batch_id, sends=document,
        detail=detail, created=created,
    )  # fmt: skip
