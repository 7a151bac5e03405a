"""The journal's store: SQLite with group commit, one row per answer, with its question's key.

Answers are stored unparsed. One thread writes, and commits in groups; a write counts as done only after its commit. A
kill at any moment loses the writes in flight and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from distill.core import console
from distill.engine.journal.inspection import NAMED, note_damage, salvage
from distill.engine.journal.keys import endpoint_json
from distill.engine.journal.records import (
    FAILURE,
    FORGET,
    BatchRecord,
    Bill,
    Change,
    SendCost,
    StageSends,
    bare,
    read_answer,
    read_batch,
    read_failure,
    require_sound,
    set_aside,
    stored,
)
from distill.engine.journal.schema import (
    UNREADABLE,
    VERSION,
    bytes_of,
    open_to_read,
    open_to_write,
    unusable,
    version_of,
)
from distill.engine.providers.bounded_numbers import count_of, number_of
from distill.errors import RunFolderError
from distill.types import Answer, Endpoint, Failure, Message, Request, Sampling, Usage

NAME = "journal.sqlite"
GROUP_SECONDS = 0.005
"""Shortest time between two commits; the writes that arrive in between share one (one fsync each)."""

_MOST = 1e15
"""Tokens or USD of a journal's sum that is no longer believed."""
_UNSTORABLE = (
    ValueError, TypeError, AttributeError, OverflowError, sqlite3.DataError, sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)  # fmt: skip
"""Errors of SQLite and its Python module for a value that no column can hold, such as an integer over 64 bits."""


@dataclass(frozen=True, slots=True)
class _Write:
    change: Change
    done: Future[int] | asyncio.Future[int]


class Journal:
    """One journal file, opened by `Journal.open`; close it, or use it in a `with` block.

    Only the thread that opened it may read. Any thread may write; each write returns a future that is done once the
    write is on the disk, or has a `RunFolderError`.
    """

    def __init__(
        self, path: Path, reader: sqlite3.Connection, writer: sqlite3.Connection | None, reuse: Sequence[Journal]
    ) -> None:
        self.path = path
        self._reader = reader
        self._writer = writer
        self._reuse = tuple(reuse)
        self._has_failures = bool(self._select("SELECT EXISTS (SELECT 1 FROM failures)")[0][0])
        version = version_of(reader, path)  # an earlier one where the journal is opened for reading
        self._is_old = version < 2
        self._columns = "*" if version == VERSION else "*, NULL"
        """All columns of a table, and NULL in place of the checksum that an earlier version has none of."""
        self._damaged: set[str] = set()
        """Keys of damaged rows that were reported."""
        self.asked_again: set[str] = set()
        """Keys whose answer `recall` has set aside."""
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, reuse: Sequence[Journal] = ()) -> Journal:
        """Open the journal at `path`, or create it.

        With `read_only`, another process may write meanwhile, and no file is created. `reuse` are other journals, read
        where this one has no answer. Raises `RunFolderError` for a file that is no journal, or is of a newer version.
        """
        path = Path(path)
        try:
            if not read_only:
                salvage(path)
            writer = None if read_only else open_to_write(path)
            return cls(path, open_to_read(path), writer, reuse)
        except UNREADABLE as error:
            raise unusable(path, error) from error

    def get(self, key: str) -> Answer | None:
        """The answer with this key, from here or a reused journal; else a permanent failure from here; else `None`."""
        for journal in (self, *self._reuse):
            if (answer := journal._answer(key)) is not None:
                return answer
        return self._failure(key)

    def _answer(self, key: str) -> Answer | None:
        for row in self._select(f"SELECT {self._columns} FROM answers WHERE key = ?", key):
            try:
                return read_answer(row)
            except ValueError as error:
                self._set_aside(key, error)
        return None

    def _set_aside(self, key: str, error: Exception) -> None:
        """Report a damaged answer once, and move it to the table `damaged`, so that its question is asked again."""
        if key in self._damaged:
            return
        self._damaged.add(key)
        where = "left out" if self._writer is None else "set aside in the table damaged, and asked again"
        if len(self._damaged) <= NAMED:
            console.warn(f"{self.path}: the answer {key[:12]} is damaged ({error}); it is {where}")
        elif len(self._damaged) == NAMED + 1:
            console.warn(f"{self.path}: more answers are damaged; `distill doctor RUN` counts them")
        if self._writer is not None:
            self.write(set_aside(key))

    def has_answer_of(self, endpoint: Endpoint) -> bool:
        """Whether there is an answer of the endpoint, here or in a reused journal; reads all where there is none."""
        query, of = "SELECT 1 FROM answers WHERE endpoint = ? LIMIT 1", endpoint_json(endpoint)
        return any(journal._select(query, of) for journal in (self, *self._reuse))

    def _failure(self, key: str) -> Failure | None:
        if not self._has_failures:
            return None
        for row in self._select(f"SELECT {self._columns} FROM failures WHERE key = ? AND permanent", key):
            with suppress(ValueError):  # a damaged failure is asked again
                return None if (failure := read_failure(row)).transient else failure
        return None

    def questions(self) -> Iterator[tuple[str, str, str]]:
        """Key, request and endpoint of every sound answer and failure; the latter two as canonical JSON."""
        for table in ("answers", "failures"):
            for row in self._rows(f"SELECT {self._columns} FROM {table} ORDER BY rowid"):
                with suppress(ValueError, TypeError, AttributeError, RecursionError):
                    require_sound(row)
                    to_request(json.loads(row[1])), Endpoint(**json.loads(row[2]))
                    yield row[0], row[1], row[2]

    def costs(self) -> list[SendCost]:
        """The cost of all sends by stage, role, model and outcome, over all invocations; unsent ones are left out."""
        rows = self._select_newer(
            "SELECT stage, role, model, CASE WHEN outcome IS NULL THEN 'in flight' WHEN outcome = 'kept' THEN 'kept'"
            " WHEN key IN (SELECT key FROM answers) THEN 'retried' ELSE 'wasted' END AS became, count(*),"
            " total(prompt_tokens), total(completion_tokens), total(usd),"
            " total(prompt_tokens) FILTER (WHERE usd IS NULL), total(completion_tokens) FILTER (WHERE usd IS NULL)"
            " FROM intents WHERE outcome IS NOT 'unsent' GROUP BY stage, role, model, became ORDER BY min(id)"
        )
        return [
            SendCost(
                stage=stage, role=role, model=model, outcome=outcome, sends=sends, prompt_tokens=_count(prompt),
                completion_tokens=_count(completion), usd=number_of(usd, most=_MOST) or 0.0,
                unpriced=Usage(_count(free_prompt), _count(free_completion)),
            )
            for stage, role, model, outcome, sends, prompt, completion, usd, free_prompt, free_completion in rows
        ]  # fmt: skip

    def sent(self) -> dict[str, StageSends]:
        """The sends of each stage. Their number never decreases: an intent is never deleted."""
        rows = self._select_newer("SELECT stage, count(*), total(usd) FROM intents GROUP BY stage ORDER BY min(id)")
        return {stage: StageSends(sends, round(number_of(usd, most=_MOST) or 0.0, 8)) for stage, sends, usd in rows}

    def batches(self, stage: str | None = None, *, name: str | None = None) -> list[BatchRecord]:
        """Every batch, or those of one stage or with one name, oldest first."""
        rows = self._select_newer(
            f"SELECT {self._columns} FROM batches"
            " WHERE (?1 IS NULL OR stage = ?1) AND (?2 IS NULL OR name = ?2) ORDER BY rowid",
            stage,
            name,
        )
        batches = []
        for row in rows:
            try:
                batches.append(read_batch(row))
            except (ValueError, TypeError) as error:
                console.warn(f"{self.path}: batch {row[0]} ({row[5]}) is damaged ({error}); it is left out")
        return batches

    def unsettled(self, stage: str) -> dict[int, Bill]:
        """Sends of a stage without an outcome, each with its worst case."""
        rows = self._select_newer(
            "SELECT id, prompt_tokens, completion_tokens, usd FROM intents WHERE outcome IS NULL AND stage = ?", stage
        )
        return {
            send: Bill(count_of(prompt), count_of(completion), number_of(usd, most=_MOST))
            for send, prompt, completion, usd in rows
        }

    def tokens(self, stage: str | None = None) -> Usage:
        """Tokens of the answers in this journal, as reported; answers without a report count nothing."""
        ((prompt, completion),) = self._select(
            "SELECT total(json_extract(usage, '$.prompt_tokens')), total(json_extract(usage, '$.completion_tokens'))"
            " FROM (SELECT CASE WHEN json_valid(usage) THEN usage END AS usage, stage FROM answers)"
            " WHERE ?1 IS NULL OR stage = ?1",
            stage,
        )
        return Usage(_count(prompt), _count(completion))

    def counts(self) -> dict[str, int]:
        """Rows in each table. `intents` are sends begun: those without an answer failed, or were killed in flight."""
        tables = ("answers", "failures", "intents")
        return {table: self._select(f"SELECT count(*) FROM {table}")[0][0] for table in tables}

    def _select(self, statement: str, *values: Any) -> list[Any]:
        return list(self._rows(statement, *values))

    def _select_newer(self, statement: str, *values: Any) -> list[Any]:
        """Nothing from a journal of version 1, which has no such columns."""
        return [] if self._is_old else self._select(statement, *values)

    def _rows(self, statement: str, *values: Any) -> Iterator[Any]:
        try:
            yield from self._reader.execute(statement, values)
        except UNREADABLE as error:
            note_damage(self.path, error)
            raise unusable(self.path, error) from error

    def write(self, change: Change) -> Future[int]:
        """Write a change from any thread; done once it is on the disk, with the number of the last row inserted."""
        done: Future[int] = Future()
        done.set_running_or_notify_cancel()  # a waiter that gives up must not undo the write
        self._put(_Write(change, done))
        return done

    def commit(self, change: Change) -> asyncio.Future[int]:
        """Write a change from an event loop, which is woken once per group of writes instead of once per write."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._put(_Write(change, done))
        return done

    def _put(self, write: _Write) -> None:
        change = write.change
        self._has_failures = self._has_failures or any(statement is FAILURE for statement, _ in change)
        if not self._has_failures:
            write = _Write(tuple([part for part in change if part[0] is not FORGET]), write.done)
        if self._writer is None:
            write.done.set_exception(RunFolderError(f"{self.path} was opened for reading only; open it to write"))
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_groups, name="journal", args=[self._writer], daemon=True)
            self._thread.start()
        self._writes.put(write)

    def trim(self) -> int:
        """Move the write-ahead log into the file, free unused pages, and return the bytes freed."""
        assert self._writer is not None
        before = bytes_of(self.path)
        try:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except UNREADABLE as error:
            raise unusable(self.path, error) from error
        return before - bytes_of(self.path)

    def _write_groups(self, connection: sqlite3.Connection) -> None:
        last, ending = -math.inf, False
        while not ending:
            writes = [self._writes.get()]
            time.sleep(max(0.0, last + GROUP_SECONDS - time.monotonic()))
            while not self._writes.empty():
                writes.append(self._writes.get())
            ending = None in writes
            _commit(connection, [write for write in writes if write is not None], self.path)
            last = time.monotonic()

    def close(self) -> None:
        """Commit all pending writes and close the file."""
        if self._thread is not None:
            self._writes.put(None)
            self._thread.join()
            self._thread = None
        self._reader.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _commit(connection: sqlite3.Connection, group: Sequence[_Write], path: Path) -> None:
    """Write a group in one transaction and resolve its futures; a change that cannot be stored fails alone."""
    try:
        try:
            results: list[int | RunFolderError] = _transaction(connection, group, _changed)
        except _UNSTORABLE:
            results = _transaction(connection, group, _changed_or_refused)
    except Exception as error:  # noqa: BLE001 - the thread has to go on, or every later write waits forever
        note_damage(path, error)
        results = [unusable(path, error)] * len(group)
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], int | RunFolderError]]] = {}
    for number, write in enumerate(group):
        result = results[number]
        if isinstance(write.done, asyncio.Future):
            loops.setdefault(write.done.get_loop(), []).append((write.done, result))
        else:
            _resolve([(write.done, result)])
    for loop, waiters in loops.items():
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(_resolve, waiters)


def _transaction(
    connection: sqlite3.Connection,
    group: Sequence[_Write],
    changed: Callable[[sqlite3.Connection, Change], int | RunFolderError],
) -> list[int | RunFolderError]:
    try:
        connection.execute("BEGIN IMMEDIATE")
        results = [changed(connection, write.change) for write in group]
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return results


def _changed(connection: sqlite3.Connection, change: Change) -> int:
    """The number of the last row."""
    row = 0
    for statement, values in change:
        row = connection.execute(statement, stored(statement, values)).lastrowid or 0
    return row


def _changed_or_refused(connection: sqlite3.Connection, change: Change) -> int | RunFolderError:
    """The same; of a change that cannot be stored, only its answers' texts, or the reason why not even those."""
    refusal: Exception | None = None
    for attempt in (change, bare(change)):
        connection.execute("SAVEPOINT change")
        try:
            return _changed(connection, attempt)
        except _UNSTORABLE as error:
            refusal = error
            connection.execute("ROLLBACK TO change")
        finally:
            connection.execute("RELEASE change")
    return RunFolderError(f"a row cannot be stored: {refusal}")


def _resolve(waiters: Sequence[tuple[Future[int] | asyncio.Future[int], int | RunFolderError]]) -> None:
    for done, result in waiters:
        if done.cancelled():
            continue
        if isinstance(result, RunFolderError):
            done.set_exception(result)
            done.exception()  # counts as read, or asyncio logs a traceback for a write that nothing waits for
        else:
            done.set_result(result)


def _count(total: Any) -> int:
    """A sum of tokens; 0 where damaged rows make it absurd."""
    return int(number_of(total, most=_MOST) or 0)


def to_request(document: Mapping[str, Any]) -> Request:
    """The request that a parsed canonical JSON document describes."""
    sampling = document.get("sampling", {})
    return Request(
        **{
            **document,
            "messages": tuple(Message(**message) for message in document.get("messages", ())),
            "sampling": Sampling(**{**sampling, "stop": tuple(sampling.get("stop", ()))}),
        }
    )
