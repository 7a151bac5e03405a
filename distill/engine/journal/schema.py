"""The journal's SQLite schema: opening, migration, and version checks."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from distill.engine.journal.records import row_checksum
from distill.errors import RunFolderError, one_line

VERSION = 3
"""`PRAGMA user_version` of the files that this module writes; an older file is migrated, a newer one refused."""
BUSY_SECONDS = 10.0
"""How long to wait for another process's lock before giving up."""
NETWORK_FILE_SYSTEMS = (
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "ceph", "fuse.ceph", "glusterfs", "fuse.glusterfs", "afs",
    "lustre", "beegfs", "gpfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone",
)  # fmt: skip
"""Where SQLite's WAL loses data, as it needs shared memory between processes (sqlite.org/wal.html)."""

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
UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""Errors of SQLite; the second one for a damaged column's name."""
TABLES = ("answers", "failures", "intents", "batches")
_CHECKSUMS = (
    "".join(f"ALTER TABLE {table} ADD COLUMN checksum INTEGER;\n" for table in TABLES)
    + "CREATE TABLE damaged AS SELECT * FROM answers WHERE false;"
)
_STEPS = {0: _SCHEMA + _SENDS + _CHECKSUMS, 1: _MIGRATE + _CHECKSUMS, 2: _CHECKSUMS}
"""What brings a file of each version to the present one; 0 is a new file."""


def connect(path: Path, options: str) -> sqlite3.Connection:
    """A connection in autocommit mode, to be used by one thread at a time."""
    uri = f"{path.absolute().as_uri()}?{options}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.text_factory = _text
    connection.create_function("row_checksum", -1, row_checksum, deterministic=True)
    return connection


def _text(data: bytes) -> str:
    """Text as it was written; of a damaged one, bytes that are no UTF-8 become half surrogate pairs."""
    return data.decode("utf-8", "surrogateescape")


def open_to_write(path: Path) -> sqlite3.Connection:
    """A connection for the one thread that writes; creates or migrates the file. Raises `RunFolderError`."""
    if (kind := file_system(path)) in NETWORK_FILE_SYSTEMS:
        raise RunFolderError(
            f"{path} is on a network file system ({kind}), where SQLite's write-ahead log loses data, as it needs"
            " memory that processes share; put the run folder on a local disk (--run-dir), and copy it when it is done"
        )
    connection = connect(path, "mode=rwc")
    try:
        connection.execute("BEGIN IMMEDIATE")
        if (version := version_of(connection, path)) < VERSION:
            for statement in filter(str.strip, _STEPS[version].split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except (*UNREADABLE, RunFolderError):
        connection.close()
        raise
    return connection


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that never writes, so that it works in read-only folders too. Raises `RunFolderError`."""
    if not path.exists():
        raise RunFolderError(f"no journal at {path}; expected the folder of a run that has asked a model")
    connection = connect(path, "mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:
        connection.close()
        if Path(f"{path}-wal").exists():
            raise
        connection = connect(path, "mode=ro&immutable=1")  # SQLite cannot write its -shm file in this folder
    try:
        if version_of(connection, path) == 0:
            raise RunFolderError(f"{path} is empty; expected the journal of a run that has asked a model")
    except (*UNREADABLE, RunFolderError):
        connection.close()
        raise
    return connection


def version_of(connection: sqlite3.Connection, path: Path) -> int:
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


def file_system(path: Path) -> str | None:
    """The kind of file system that a path is on, such as `ext4`; `None` where the system does not say."""
    import psutil

    try:
        mounts = psutil.disk_partitions(all=True)
    except OSError:
        return None
    real = path.resolve()
    above = [mount for mount in mounts if real.is_relative_to(mount.mountpoint)]
    # Of several mounts at one point the last counts, which `max` would not choose.
    return max(reversed(above), key=lambda mount: len(Path(mount.mountpoint).parts)).fstype if above else None


def bytes_of(path: Path) -> int:
    """Size of the file and of its write-ahead log."""
    return sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())


_ADVICE = {
    "file is not a database": "move it away, or choose another run folder",
    "disk image is malformed": "the file is damaged; run again, which saves every row that can be read",
    "can't decode": "the file is damaged; restore it from a copy, or move it away and start again",
    "malformed": "the file is damaged; restore it from a copy, or move it away and start again",
    "disk is full": "free some space and run again; no answer is lost",
    "disk I/O": "check the disk and its quota, then run again",
    "readonly": "correct the permissions and run again",
    "unable to open": "check that the folder exists and that you may write in it",
    "MemoryError": "free some memory and run again; no answer is lost",
    "locked": "another process holds it; wait for that to end and run again",
}


def unusable(path: Path, error: Exception) -> RunFolderError:
    """SQLite's error in one line, with advice."""
    advice = next((advice for part, advice in _ADVICE.items() if part in repr(error)), "check the file and its folder")
    return RunFolderError(f"cannot use the journal {path}: {one_line(str(error) or type(error).__name__)}; {advice}")
