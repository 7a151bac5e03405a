"""The run's SQLite journal: every answer that was paid for, under a key of everything that determines it.

Nothing here looks inside an answer. A write is handed to one thread that commits in groups, and whoever handed it in
learns of it only after the commit; a kill at any moment loses what was in flight and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from distill.errors import RunFolderError
from distill.keys import canonical, endpoint_json, key
from distill.types import Answer, Completion, Endpoint, Failure, Message, Request, Sampling, Usage

__all__ = ["Batch", "Cost", "Entry", "Journal", "canonical", "key"]

NAME = "journal.sqlite"
VERSION = 2
"""`PRAGMA user_version` of the files that this module writes; an older file is migrated, a newer one refused."""
GROUP_SECONDS = 0.005
"""Shortest time between two commits; what arrives in between shares one (one fsync each)."""
BUSY_SECONDS = 10.0
"""How long to wait for another process's lock before giving up."""
MOUNTS = Path("/proc/mounts")
NETWORK_FILE_SYSTEMS = (
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "ceph", "fuse.ceph", "glusterfs", "fuse.glusterfs", "afs",
    "lustre", "beegfs", "gpfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone",
)  # fmt: skip
"""Where SQLite's WAL loses data, for it needs shared memory between processes (sqlite.org/wal.html)."""

_SCHEMA = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, endpoint TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
    finish TEXT NOT NULL, usage TEXT, raw TEXT NOT NULL, loglikelihood REAL, stage TEXT NOT NULL, created TEXT NOT NULL
);
CREATE TABLE failures (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, endpoint TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    attempts INTEGER NOT NULL, permanent INTEGER NOT NULL, stage TEXT NOT NULL, created TEXT NOT NULL
);
"""
_SENDS = """
CREATE TABLE intents (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, attempt INTEGER NOT NULL, stage TEXT NOT NULL, role TEXT NOT NULL,
    model TEXT NOT NULL, outcome TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, usd REAL, created TEXT NOT NULL
);
CREATE TABLE batches (
    name TEXT PRIMARY KEY, stage TEXT NOT NULL, role TEXT NOT NULL, state TEXT NOT NULL, file_id TEXT, batch_id TEXT,
    sends TEXT NOT NULL, detail TEXT NOT NULL, created TEXT NOT NULL
);
"""
_MIGRATE = (
    """
ALTER TABLE intents RENAME TO intents_1;
DROP INDEX IF EXISTS intents_key;
"""
    + _SENDS
    + """
INSERT INTO intents (key, attempt, stage, role, model, outcome, prompt_tokens, completion_tokens, usd, created)
    SELECT sent.key, sent.attempt, sent.stage, coalesce(json_extract(answers.request, '$.role'), ''),
        coalesce(json_extract(answers.endpoint, '$.model'), ''),
        CASE WHEN answers.key IS NOT NULL AND sent.rowid = sent.last THEN 'kept' ELSE 'free' END,
        coalesce(json_extract(answers.usage, '$.prompt_tokens'), 0) * (sent.rowid = sent.last),
        coalesce(json_extract(answers.usage, '$.completion_tokens'), 0) * (sent.rowid = sent.last),
        NULL, sent.created
    FROM (SELECT rowid, *, max(rowid) OVER (PARTITION BY key) AS last FROM intents_1) AS sent
    LEFT JOIN answers ON answers.key = sent.key ORDER BY sent.rowid;
DROP TABLE intents_1;
"""
)
_ANSWER = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FAILURE = "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INTENT = (
    "INSERT INTO intents (key, attempt, stage, role, model, prompt_tokens, completion_tokens, usd, created)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SETTLE = "UPDATE intents SET outcome = ?, prompt_tokens = ?, completion_tokens = ?, usd = ? WHERE id = ?"
_SETTLE_AS_IS = "UPDATE intents SET outcome = ? WHERE id = ?"
_FORGET = "DELETE FROM failures WHERE key = ?"
_BATCH = "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_BATCH_OF_LAST = (
    "INSERT INTO batches SELECT ?, ?, ?, ?, ?, ?, json_group_object(key, id), ?, ?"
    " FROM (SELECT key, id FROM intents ORDER BY id DESC LIMIT ?)"
)

Statement: TypeAlias = tuple[str, tuple[Any, ...]]
Change: TypeAlias = tuple[Statement, ...]
"""What is written together, in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An answer together with what was asked, for accounts and reports."""

    completion: Completion
    request: Request
    endpoint: Endpoint
    stage: str
    created: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one kind of sends cost."""

    stage: str
    role: str
    """The teacher's name in the engine, `teacher` where there is one only."""
    model: str
    outcome: Literal["kept", "retried", "wasted", "in flight"]
    """`kept`: the answer is in the journal. `retried`: no answer, but a later send brought one. `wasted`: no answer at
    all, or one too many. `in flight`: begun and not heard of again, as at a kill; charged at most."""
    sends: int
    prompt_tokens: int
    completion_tokens: int
    """As reported; at most, where a send may have been billed and nothing was reported."""
    usd: float
    """By the price at the time of buying."""
    unpriced: Usage
    """Tokens of those sends that had no price when they were bought; not in `usd`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One job of a provider's batch interface, on its way."""

    name: str
    """Ours; the provider keeps it as metadata, so that a job is found again whose id was never written down."""
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
    """What a send costs, or may cost."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    usd: float | None = None
    """`None` without a price."""


@dataclass(frozen=True, slots=True)
class _Write:
    change: Change
    done: Future[int] | asyncio.Future[int]


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
        self._has_failures = bool(self._select("SELECT EXISTS (SELECT 1 FROM failures)")[0][0])
        self._is_old = _version(reader, path) < VERSION  # opened for reading: written by an earlier distill
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
        if not self._has_failures:
            return None
        found = self._select("SELECT reason, detail, attempts FROM failures WHERE key = ? AND permanent", key)
        for reason, detail, attempts in found:
            return Failure(key=key, reason=reason, detail=detail, transient=False, attempts=attempts)
        return None

    def entries(self, stage: str | None = None) -> Iterator[Entry]:
        """Every answer bought here, of one stage or of all, in the order of buying; read as one goes."""
        rows = self._rows(
            "SELECT key, text, finish, usage, raw, loglikelihood, request, endpoint, stage, created FROM answers"
            " WHERE ?1 IS NULL OR stage = ?1 ORDER BY rowid",
            stage,
        )
        for *answer, request, endpoint, of, created in rows:
            yield Entry(
                completion=_to_completion(answer),
                request=to_request(json.loads(request)),
                endpoint=Endpoint(**json.loads(endpoint)),
                stage=of,
                created=created,
            )

    def questions(self) -> Iterator[tuple[str, str, str]]:
        """Key, request and endpoint of all that was answered or failed, as canonical JSON."""
        for table in ("answers", "failures"):
            yield from self._rows(f"SELECT key, request, endpoint FROM {table} ORDER BY rowid")

    def costs(self) -> list[Cost]:
        """What all sends cost, by stage, role, model and outcome, over all invocations."""
        if self._is_old:
            return []
        rows = self._select(
            "SELECT stage, role, model, CASE WHEN outcome IS NULL THEN 'in flight' WHEN outcome = 'kept' THEN 'kept'"
            " WHEN key IN (SELECT key FROM answers) THEN 'retried' ELSE 'wasted' END AS became, count(*),"
            " total(prompt_tokens), total(completion_tokens), total(usd),"
            " total(prompt_tokens) FILTER (WHERE usd IS NULL), total(completion_tokens) FILTER (WHERE usd IS NULL)"
            " FROM intents GROUP BY stage, role, model, became ORDER BY min(id)"
        )
        return [
            Cost(
                stage=stage, role=role, model=model, outcome=outcome, sends=sends, prompt_tokens=int(prompt),
                completion_tokens=int(completion), usd=usd, unpriced=Usage(int(free_prompt), int(free_completion)),
            )
            for stage, role, model, outcome, sends, prompt, completion, usd, free_prompt, free_completion in rows
        ]  # fmt: skip

    def batches(self, stage: str | None = None, *, name: str | None = None) -> list[Batch]:
        """Every batch of a stage or of all, or the one so called, oldest first."""
        if self._is_old:
            return []
        rows = self._select(
            "SELECT * FROM batches WHERE (?1 IS NULL OR stage = ?1) AND (?2 IS NULL OR name = ?2) ORDER BY rowid",
            stage,
            name,
        )
        return [
            Batch(
                name=name, stage=of, role=role, state=state, file_id=file_id, batch_id=batch_id,
                sends=json.loads(sends), detail=detail, created=created,
            )
            for name, of, role, state, file_id, batch_id, sends, detail, created in rows
        ]  # fmt: skip

    def unsettled(self, stage: str) -> dict[int, Bill]:
        """Sends of a stage that have no outcome, each with the most that it may cost."""
        if self._is_old:
            return {}
        rows = self._select(
            "SELECT id, prompt_tokens, completion_tokens, usd FROM intents WHERE outcome IS NULL AND stage = ?", stage
        )
        return {send: Bill(*most) for send, *most in rows}

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
        return list(self._rows(statement, *values))

    def _rows(self, statement: str, *values: Any) -> Iterator[Any]:
        try:
            yield from self._reader.execute(statement, values)
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error

    def intend(self, key: str, attempt: int, *, stage: str = "") -> Future[int]:
        """Note that a request is about to be sent, to be awaited before sending it; the result is the send's number."""
        return self.write(intention(key, attempt, stage=stage))

    def keep(self, completion: Completion, request: Request, endpoint: Endpoint, *, stage: str = "") -> Future[int]:
        """Write an answer; the first one under a key stays, and an earlier failure under it is forgotten."""
        return self.write(answered(completion, canonical(request), request.kind, endpoint, stage=stage))

    def fail(self, failure: Failure, request: Request, endpoint: Endpoint, *, stage: str = "") -> Future[int]:
        """Write a failure; `get` finds a permanent one again, a transient one is only an account."""
        return self.write(failed(failure, canonical(request), endpoint, stage=stage))

    def write(self, change: Change) -> Future[int]:
        """Hand in a change from any thread; done once it is on the disk, with the number of the last row inserted."""
        done: Future[int] = Future()
        done.set_running_or_notify_cancel()  # a waiter that gives up must not undo the write
        self._put(_Write(change, done))
        return done

    def commit(self, change: Change) -> asyncio.Future[int]:
        """The same from an event loop, which is told once a group and not once a write."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._put(_Write(change, done))
        return done

    def _put(self, write: _Write) -> None:
        change = write.change
        self._has_failures = self._has_failures or any(statement is _FAILURE for statement, _ in change)
        if not self._has_failures:
            write = _Write(tuple([part for part in change if part[0] is not _FORGET]), write.done)
        if self._writer is None:
            write.done.set_exception(RunFolderError(f"{self.path} was opened for reading only; open it to write"))
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_groups, name="journal", args=[self._writer], daemon=True)
            self._thread.start()
        self._writes.put(write)

    def trim(self) -> int:
        """Move the write-ahead log into the file, give unused pages back, and return the bytes freed."""
        assert self._writer is not None
        before = _bytes(self.path)
        try:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error
        return before - _bytes(self.path)

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


def intention(
    key: str, attempt: int, *, stage: str = "", role: str = "", model: str = "", most: Bill = Bill()
) -> Change:
    """A send that is about to begin. `most` stands until it is settled: what is killed in flight is charged in full."""
    row = (key, attempt, stage, role, model, most.prompt_tokens, most.completion_tokens, most.usd, _now())
    return ((_INTENT, row),)


def settled(send: int, bill: Bill | None, outcome: str) -> Statement:
    """How a send ended: `kept`, `free` or `charged`, and what it cost; without a bill, at most, as noted before."""
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
    """An answer; the first one under a key stays, and an earlier failure under it is forgotten.

    `raw_json` is the completion's `raw` as JSON, where the caller has it.
    """
    usage = completion.usage
    row = (
        completion.key, request_json, endpoint_json(endpoint), kind, completion.text, completion.finish,
        None if usage is None else usage_json(usage), raw_json or json.dumps(completion.raw),
        completion.loglikelihood,
        stage, _now(),
    )  # fmt: skip
    return (_ANSWER, row), (_FORGET, (completion.key,))


def usage_json(usage: Usage) -> str:
    """The usage as it stands in the table."""
    return f'{{"prompt_tokens": {usage.prompt_tokens}, "completion_tokens": {usage.completion_tokens}}}'


def failed(failure: Failure, request_json: str, endpoint: Endpoint, *, stage: str = "") -> Change:
    """A failure, permanent or not."""
    row = (
        failure.key, request_json, endpoint_json(endpoint), failure.reason, failure.detail, failure.attempts,
        int(not failure.transient), stage, _now(),
    )  # fmt: skip
    return ((_FAILURE, row),)


def prepared(batch: Batch, intentions: Sequence[Change]) -> Change:
    """A new batch and its sends, one a question, in one change: their numbers are not known before it."""
    of_batch = (batch.name, batch.stage, batch.role, batch.state, batch.file_id, batch.batch_id)
    row = (*of_batch, batch.detail, batch.created or _now(), len(intentions))
    return *(statement for intention in intentions for statement in intention), (_BATCH_OF_LAST, row)


def batched(batch: Batch) -> Statement:
    """A batch as it stands now; replaces what was written of it."""
    row = (
        batch.name, batch.stage, batch.role, batch.state, batch.file_id, batch.batch_id, json.dumps(dict(batch.sends)),
        batch.detail, batch.created or _now(),
    )  # fmt: skip
    return _BATCH, row


def _commit(connection: sqlite3.Connection, group: Sequence[_Write], path: Path) -> None:
    """Write a group in one transaction and tell each waiter; an error is the whole group's."""
    results: list[int] | RunFolderError = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        results = [_changed(connection, write.change) for write in group]
        connection.execute("COMMIT")
    except (sqlite3.Error, ValueError, OverflowError) as error:
        results = _unusable(path, error)
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], int | RunFolderError]]] = {}
    for number, write in enumerate(group):
        result = results if isinstance(results, RunFolderError) else results[number]
        if isinstance(write.done, asyncio.Future):
            loops.setdefault(write.done.get_loop(), []).append((write.done, result))
        else:
            _tell([(write.done, result)])
    for loop, waiters in loops.items():
        with suppress(RuntimeError):  # the loop was left while this was written
            loop.call_soon_threadsafe(_tell, waiters)


def _changed(connection: sqlite3.Connection, change: Change) -> int:
    row = 0
    for statement, values in change:
        row = connection.execute(statement, values).lastrowid or 0
    return row


def _tell(waiters: Sequence[tuple[Future[int] | asyncio.Future[int], int | RunFolderError]]) -> None:
    for done, result in waiters:
        if done.cancelled():
            continue
        if isinstance(result, RunFolderError):
            done.set_exception(result)
        else:
            done.set_result(result)


def _connect(path: Path, options: str) -> sqlite3.Connection:
    """A connection in autocommit mode, to be used by one thread at a time."""
    uri = f"{path.absolute().as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _open_to_write(path: Path) -> sqlite3.Connection:
    if (kind := file_system(path)) in NETWORK_FILE_SYSTEMS:
        raise RunFolderError(
            f"{path} is on a network file system ({kind}), where SQLite's write-ahead log loses data, for it needs"
            " memory that processes share; put the run folder on a local disk (--run-dir), and copy it when it is done"
        )
    connection = _connect(path, "mode=rwc")
    try:
        connection.execute("BEGIN IMMEDIATE")
        if (found := _version(connection, path)) < VERSION:
            for statement in filter(str.strip, (_MIGRATE if found else _SCHEMA + _SENDS).split(";")):
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


def file_system(path: Path, mounts: Path | None = None) -> str | None:
    """The kind of file system that a path is on, such as `ext4`; `None` where the system does not say."""
    try:
        lines = [line.split() for line in (mounts or MOUNTS).read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return None
    real = Path(path).absolute().resolve()
    found = [(Path(_unescaped(line[1])), line[2]) for line in lines if len(line) > 2]
    above = [
        (len(point.parts), number, kind) for number, (point, kind) in enumerate(found) if real.is_relative_to(point)
    ]
    return max(above)[2] if above else None


def _unescaped(point: str) -> str:
    """A mount point as fstab(5) writes it: blanks are octal."""
    return point.replace("\\040", " ").replace("\\011", "\t")


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())


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


def to_request(found: Mapping[str, Any]) -> Request:
    """A request from its canonical JSON, read."""
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
