"""The run's SQLite journal: every answer that was paid for, under a key of everything that determines it.

Nothing here looks inside an answer. A write is handed to one thread that commits in groups, and whoever handed it in
learns of it only after the commit; a kill at any moment loses what was in flight and nothing else.
"""

from __future__ import annotations

import json
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

from distill.errors import RunFolderError
from distill.types import Answer, Completion, Endpoint, Failure, Message, Request, Sampling, Usage

NAME = "journal.sqlite"
VERSION = 1
"""`PRAGMA user_version` of the files that this module writes; a newer file is refused."""
GROUP_SECONDS = 0.005
"""Shortest time between two commits; what arrives in between shares one (one fsync each)."""
BUSY_SECONDS = 10.0
"""How long to wait for another process's lock before giving up."""

_SCHEMA = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, endpoint TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
    finish TEXT NOT NULL, usage TEXT, raw TEXT NOT NULL, loglikelihood REAL, stage TEXT NOT NULL, created TEXT NOT NULL
);
CREATE TABLE failures (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, endpoint TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    attempts INTEGER NOT NULL, permanent INTEGER NOT NULL, stage TEXT NOT NULL, created TEXT NOT NULL
);
CREATE TABLE intents (key TEXT NOT NULL, attempt INTEGER NOT NULL, stage TEXT NOT NULL, created TEXT NOT NULL);
CREATE INDEX intents_key ON intents (key);
"""
_ANSWER = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FAILURE = "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INTENT = "INSERT INTO intents VALUES (?, ?, ?, ?)"
_FORGET = "DELETE FROM failures WHERE key = ?"


def key(request: Request, endpoint: Endpoint) -> str:
    """SHA-256, in hex, of the canonical JSON of both: every field, found by introspection.

    A field at its default is left out, so that a later version that adds a field still finds the answers of an
    earlier one; a default must therefore never change.
    """
    both = f'{{"endpoint":{_endpoint_json(endpoint)},"request":{canonical(request)}}}'
    return sha256(both.encode("ascii")).hexdigest()


def canonical(value: Any) -> str:
    """JSON that is equal for equal values: sorted keys, ASCII, no spaces, `1.0` as `1`, defaults left out."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else value
    if is_dataclass(value) and not isinstance(value, type):
        items = ((name, getattr(value, name), default) for name, default in _defaults(type(value)))
        return {name: _plain(item) for name, item, default in items if item != default}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise TypeError(f"a {type(value).__name__} has no canonical JSON")


@cache
def _defaults(kind: type) -> tuple[tuple[str, Any], ...]:
    """Each field's name and default; `MISSING`, which equals no value, where there is none."""
    return tuple(
        (field.name, field.default if field.default_factory is MISSING else field.default_factory())
        for field in fields(kind)
    )


@lru_cache(maxsize=64)
def _endpoint_json(endpoint: Endpoint) -> str:
    return canonical(endpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An answer together with what was asked, for accounts and reports."""

    completion: Completion
    request: Request
    endpoint: Endpoint
    stage: str
    created: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class _Write:
    statements: tuple[tuple[str, tuple[Any, ...]], ...]
    done: Future[None]


class Journal:
    """One journal file, opened by `Journal.open`; close it, or use it in a `with` block.

    Reading is for the thread that opened it. Writes may come from any thread; each returns a future that is done
    once the write is on the disk, or holds a `RunFolderError`.
    """

    def __init__(
        self, path: Path, reader: sqlite3.Connection, writer: sqlite3.Connection | None, reuse: Sequence[Journal]
    ) -> None:
        self.path = path
        self._reader = reader
        self._writer = writer
        self._reuse = tuple(reuse)
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, reuse: Sequence[Journal] = ()) -> Journal:
        """Open the journal at `path`, or create it.

        `read_only` may read while another process writes, and never creates. `reuse` are other journals, whose answers
        serve when this one has none. Raises `RunFolderError` for what is no journal, or one of a newer version.
        """
        path = Path(path)
        try:
            writer = None if read_only else _open_to_write(path)
            return cls(path, _open_to_read(path), writer, reuse)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error

    def get(self, key: str) -> Answer | None:
        """The answer under this key, from here or a reused journal; else a permanent failure of our own; else None."""
        for journal in (self, *self._reuse):
            if (completion := journal._completion(key)) is not None:
                return completion
        return self._failure(key)

    def _completion(self, key: str) -> Completion | None:
        rows = self._select("SELECT key, text, finish, usage, raw, loglikelihood FROM answers WHERE key = ?", key)
        return _to_completion(rows[0]) if rows else None

    def _failure(self, key: str) -> Failure | None:
        found = self._select("SELECT reason, detail, attempts FROM failures WHERE key = ? AND permanent", key)
        for reason, detail, attempts in found:
            return Failure(key=key, reason=reason, detail=detail, transient=False, attempts=attempts)
        return None

    def entries(self, stage: str | None = None) -> Iterator[Entry]:
        """Every answer bought here, of one stage or of all, in the order of buying."""
        rows = self._select(
            "SELECT key, text, finish, usage, raw, loglikelihood, request, endpoint, stage, created FROM answers"
            " WHERE ?1 IS NULL OR stage = ?1 ORDER BY rowid",
            stage,
        )
        for *answer, request, endpoint, of, created in rows:
            yield Entry(
                completion=_to_completion(answer),
                request=_to_request(json.loads(request)),
                endpoint=Endpoint(**json.loads(endpoint)),
                stage=of,
                created=created,
            )

    def tokens(self, stage: str | None = None) -> Usage:
        """Tokens of the answers bought here, as reported; those without a report count nothing."""
        ((prompt, completion),) = self._select(
            "SELECT total(json_extract(usage, '$.prompt_tokens')), total(json_extract(usage, '$.completion_tokens'))"
            " FROM answers WHERE ?1 IS NULL OR stage = ?1",
            stage,
        )
        return Usage(int(prompt), int(completion))

    def counts(self) -> dict[str, int]:
        """Rows in each table. `intents` are sends begun: one without an answer was failed, or killed in flight."""
        tables = ("answers", "failures", "intents")
        return {table: self._select(f"SELECT count(*) FROM {table}")[0][0] for table in tables}

    def _select(self, statement: str, *values: Any) -> list[Any]:
        try:
            return self._reader.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error

    def intend(self, key: str, attempt: int, *, stage: str = "") -> Future[None]:
        """Note that a request is about to be sent, to be awaited before sending it."""
        return self._put((_INTENT, (key, attempt, stage, _now())))

    def keep(self, completion: Completion, request: Request, endpoint: Endpoint, *, stage: str = "") -> Future[None]:
        """Write an answer; the first one under a key stays, and an earlier failure under it is forgotten."""
        usage = None if completion.usage is None else json.dumps(asdict(completion.usage))
        row = (
            completion.key, canonical(request), _endpoint_json(endpoint), request.kind, completion.text,
            completion.finish, usage, json.dumps(completion.raw), completion.loglikelihood, stage, _now(),
        )  # fmt: skip
        return self._put((_ANSWER, row), (_FORGET, (completion.key,)))

    def fail(self, failure: Failure, request: Request, endpoint: Endpoint, *, stage: str = "") -> Future[None]:
        """Write a failure; `get` finds a permanent one again, a transient one is only an account."""
        row = (
            failure.key, canonical(request), _endpoint_json(endpoint), failure.reason, failure.detail, failure.attempts,
            int(not failure.transient), stage, _now(),
        )  # fmt: skip
        return self._put((_FAILURE, row))

    def _put(self, *statements: tuple[str, tuple[Any, ...]]) -> Future[None]:
        write = _Write(statements, Future())
        write.done.set_running_or_notify_cancel()  # a waiter that gives up must not undo the write
        if self._writer is None:
            write.done.set_exception(RunFolderError(f"{self.path} was opened for reading only; open it to write"))
            return write.done
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_groups, name="journal", args=[self._writer], daemon=True)
            self._thread.start()
        self._writes.put(write)
        return write.done

    def _write_groups(self, connection: sqlite3.Connection) -> None:
        last, ending = -math.inf, False
        while not ending:
            taken = [self._writes.get()]
            time.sleep(max(0.0, last + GROUP_SECONDS - time.monotonic()))
            while not self._writes.empty():
                taken.append(self._writes.get())
            ending = None in taken
            _commit(connection, [write for write in taken if write is not None], self.path)
            last = time.monotonic()

    def close(self) -> None:
        """Commit what was handed in, and let go of the file."""
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
    """Write a group in one transaction and tell each waiter; an error is the whole group's."""
    failed: RunFolderError | None = None
    try:
        connection.execute("BEGIN IMMEDIATE")
        for write in group:
            for statement, values in write.statements:
                connection.execute(statement, values)
        connection.execute("COMMIT")
    except (sqlite3.Error, ValueError, OverflowError) as error:
        failed = _unusable(path, error)
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
    for write in group:
        if failed is None:
            write.done.set_result(None)
        else:
            write.done.set_exception(failed)


def _connect(path: Path, options: str) -> sqlite3.Connection:
    """A connection in autocommit mode, to be used by one thread at a time."""
    uri = f"{path.absolute().as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _open_to_write(path: Path) -> sqlite3.Connection:
    connection = _connect(path, "mode=rwc")
    try:
        connection.execute("BEGIN IMMEDIATE")
        if _version(connection, path) == 0:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except (sqlite3.Error, RunFolderError):
        connection.close()
        raise
    return connection


def _open_to_read(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise RunFolderError(f"no journal at {path}; expected the folder of a run that has asked a model")
    connection = _connect(path, "mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:
        connection.close()
        if Path(f"{path}-wal").exists():
            raise
        connection = _connect(path, "mode=ro&immutable=1")  # a folder in which SQLite cannot put its -shm file
    try:
        if _version(connection, path) == 0:
            raise RunFolderError(f"{path} is empty; expected the journal of a run that has asked a model")
    except (sqlite3.Error, RunFolderError):
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema's version, 0 for a new file. Raises `RunFolderError` for another program's database or a newer one."""
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()}
    if version > VERSION and "answers" in tables:
        raise RunFolderError(
            f"{path} was written by a newer distill (version {version}, this one knows {VERSION}); upgrade distill"
        )
    if tables and not (version and {"answers", "failures", "intents"} <= tables):
        raise RunFolderError(f"{path} is a database of another program; move it away or choose another run folder")
    return int(version)


_ADVICE = {
    "file is not a database": "move it away, or choose another run folder",
    "malformed": "the file is damaged; restore it from a copy, or move it away and start again",
    "disk is full": "free some space and run again; nothing that was bought is lost",
    "disk I/O": "check the disk and its quota, then run again",
    "readonly": "mend the permissions and run again",
    "unable to open": "check that the folder exists and that you may write in it",
    "locked": "another process holds it; wait for that to end and run again",
}


def _unusable(path: Path, error: Exception) -> RunFolderError:
    advice = next((advice for part, advice in _ADVICE.items() if part in str(error)), "check the file and its folder")
    return RunFolderError(f"cannot use the journal {path}: {error}; {advice}")


def _to_completion(row: Sequence[Any]) -> Completion:
    key, text, finish, usage, raw, loglikelihood = row
    return Completion(
        key=key,
        text=text,
        finish=finish,
        usage=None if usage is None else Usage(**json.loads(usage)),
        raw=json.loads(raw),
        loglikelihood=loglikelihood,
    )


def _to_request(found: dict[str, Any]) -> Request:
    sampling = found.get("sampling", {})
    return Request(
        **{
            **found,
            "messages": tuple(Message(**message) for message in found.get("messages", ())),
            "sampling": Sampling(**{**sampling, "stop": tuple(sampling.get("stop", ()))}),
        }
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
