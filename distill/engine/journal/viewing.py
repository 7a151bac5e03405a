"""What a reader is shown of a journal: the newest answers, the last failure, the question behind a key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.engine.journal.schema import UNREADABLE, connect, unusable

NEWEST_ROWS = 200
"""Last rows of the journal that the newest answers are taken from; those beyond are of a likelihood's rows."""


@dataclass(frozen=True, slots=True)
class JournalledAnswer:
    """One answer of the journal with the question that it answers."""

    key: str
    request: dict[str, Any]
    endpoint: dict[str, Any]
    text: str
    finish: str
    usage: dict[str, Any] | None
    stage: str
    created: str


@dataclass(frozen=True, slots=True)
class JournalledFailure:
    """One failed request."""

    reason: str
    detail: str
    stage: str
    created: str


_ANSWER = "SELECT key, request, endpoint, text, finish, usage, stage, created FROM answers"


def newest(path: Path, most: int) -> list[JournalledAnswer]:
    """The newest answers, the last one first. Raises `RunFolderError` for a journal that cannot be read."""
    with _reading(path) as connection:
        rows = connection.execute(
            f"{_ANSWER} WHERE kind = 'answer' AND rowid > (SELECT max(rowid) FROM answers) - ? ORDER BY rowid DESC"
            " LIMIT ?",
            (NEWEST_ROWS, most),
        )
        return list(_answers(rows))


def behind(path: Path, keys: Sequence[str]) -> list[JournalledAnswer]:
    """The answers with these keys, in their order, as far as they are in this journal. Raises `RunFolderError`."""
    with _reading(path) as connection:
        rows = [row for key in keys for row in connection.execute(f"{_ANSWER} WHERE key = ?", (key,))]
        return list(_answers(rows))


def last_failure(path: Path) -> JournalledFailure | None:
    """The last failed request. Raises `RunFolderError` for a journal that cannot be read."""
    with _reading(path) as connection:
        rows = connection.execute("SELECT reason, detail, stage, created FROM failures ORDER BY rowid DESC LIMIT 1")
        return next((JournalledFailure(*map(str, row)) for row in rows), None)


def spent(path: Path) -> tuple[dict[str, float], float]:
    """USD of the sends whose cost is known, by stage; and the most that those in flight may cost. Reads all sends.

    Raises `RunFolderError` for a journal that cannot be read.
    """
    with _reading(path) as connection:
        rows = connection.execute(
            "SELECT stage, total(usd) FILTER (WHERE outcome IS NOT NULL), total(usd) FILTER (WHERE outcome IS NULL)"
            " FROM intents WHERE outcome IS NOT 'unsent' GROUP BY stage"
        ).fetchall()
    return {stage: usd for stage, usd, _ in rows}, sum(usd for *_, usd in rows)


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """A connection that makes no file: without a write-ahead log nobody writes, and SQLite need not make one."""
    options = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    try:
        with closing(connect(path, options)) as connection:
            yield connection
    except UNREADABLE as error:
        raise unusable(path, error) from error


def _answers(rows: Any) -> Iterator[JournalledAnswer]:
    """Damaged rows are left out."""
    for key, request, endpoint, text, finish, usage, stage, created in rows:
        with suppress(ValueError, TypeError, RecursionError):
            asked, of, cost = (None if one is None else json.loads(one) for one in (request, endpoint, usage))
            if isinstance(asked, dict) and isinstance(of, dict):
                yield JournalledAnswer(key, asked, of, str(text), finish, cost, stage, created)
