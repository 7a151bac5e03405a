"""Says which rows of a journal are sound, and saves what can be read of a file that SQLite finds damaged."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.core import console
from distill.engine.journal.records import read_answer, read_batch, read_failure, require_sound
from distill.engine.journal.schema import (
    TABLES,
    UNREADABLE,
    VERSION,
    connect,
    open_to_read,
    open_to_write,
    unusable,
    version_of,
)
from distill.errors import RunFolderError

MOST_ROWS_BEYOND = 10_000_000
"""Row numbers that are tried one by one beyond the first row that cannot be read."""
CHECKED_BYTES = 32 * 2**20
"""A file up to this size is checked whenever it is opened for writing, in under 0.1 s."""
NAMED = 5
"""Damaged rows that a message names; the rest are counted."""
_READERS: dict[str, Callable[[Sequence[Any]], object]] = {
    "answers": read_answer,
    "failures": read_failure,
    "batches": read_batch,
    "intents": require_sound,
}


@dataclass(frozen=True, slots=True)
class TableCondition:
    """Condition of one table's rows."""

    name: str
    """`answers`, `failures`, `intents` (sends) or `batches`."""
    rows: int
    """All rows, damaged ones included."""
    unchecked: int
    """Rows without a checksum, from an earlier version, that can be read."""
    damaged: tuple[str, ...]
    """The damaged rows: the first 12 characters of their key, or their number."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Condition of a journal."""

    path: Path
    tables: tuple[TableCondition, ...]
    faults: tuple[str, ...]
    """What SQLite says of a damaged file, at most five lines."""
    set_aside: int
    """Answers that an earlier run moved to the table `damaged`: damaged ones, and failures asked again."""

    @property
    def is_sound(self) -> bool:
        """Whether no row is damaged, nor the file."""
        return not self.faults and not any(table.damaged for table in self.tables)

    def lines(self) -> list[str]:
        """The condition in one line per table, and one per fault of the file."""
        lines = [f"{self.path}: {fault}" for fault in self.faults]
        for table in self.tables:
            notes = [f"{table.unchecked} of them from before checksums"] if table.unchecked else []
            notes += [f"{len(table.damaged)} damaged: {_named(table.damaged)}"] if table.damaged else []
            lines.append("; ".join([f"{table.rows} {table.name}", *notes]))
        return [*lines, *([f"{self.set_aside} answers were set aside earlier"] if self.set_aside else [])]


def inspect(path: Path) -> Inspection:
    """Read a whole journal and check every row. Raises `RunFolderError` for a file that is no journal."""
    try:
        with closing(open_to_read(path)) as connection:
            version = version_of(connection, path)
            tables = [table for table in TABLES if version > 1 or table in ("answers", "failures")]
            aside = sum(1 for _ in _rows(connection, "damaged")) if version == VERSION else 0
            conditions = tuple(_condition(connection, table, has_checksums=version == VERSION) for table in tables)
            return Inspection(path, conditions, _faults(connection), aside)
    except UNREADABLE as error:
        raise unusable(path, error) from error


def _condition(connection: sqlite3.Connection, table: str, *, has_checksums: bool) -> TableCondition:
    rows, unchecked, damaged = 0, 0, []
    for number, row in _rows(connection, table):
        rows += 1
        values = (row or ())[table == "intents" :]  # the number of a send is not summed
        try:
            if row is None:
                raise ValueError("SQLite cannot read it")
            _READERS[table](values if has_checksums else (*values, None))
            unchecked += not has_checksums or values[-1] is None
        except (ValueError, TypeError, IndexError):
            damaged.append(str(number) if row is None or table == "intents" else str(row[0])[:12])
    return TableCondition(table, rows, unchecked, tuple(damaged))


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[tuple[int, tuple[Any, ...] | None]]:
    """Number and values of every row, in order; `None` in place of values that SQLite cannot read."""
    good = 0
    try:
        for good, *values in connection.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid"):
            yield good, tuple(values)
        return
    except UNREADABLE:
        last = min(_last_row(connection, table), good + MOST_ROWS_BEYOND)
    for number in range(good + 1, last + 1):
        try:
            for values in connection.execute(f"SELECT * FROM {table} WHERE rowid = ?", (number,)):
                yield number, tuple(values)
        except UNREADABLE:
            yield number, None


def _last_row(connection: sqlite3.Connection, table: str) -> int:
    """The highest row number; 0 where it cannot be read."""
    try:
        return int(connection.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0)
    except UNREADABLE:
        return 0


def _faults(connection: sqlite3.Connection) -> tuple[str, ...]:
    try:
        faults = [fault for (fault,) in connection.execute(f"PRAGMA quick_check({NAMED})")]
    except UNREADABLE as error:
        faults = [str(error)]
    return () if faults == ["ok"] else tuple(" ".join(fault.split()) for fault in faults)


def _named(rows: tuple[str, ...]) -> str:
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return ", ".join(rows[:NAMED]) + more


# Saving


def salvage(path: Path) -> None:
    """Replace a file that SQLite finds damaged by one with every row that can be read; the damaged one stays beside it.

    A file over `CHECKED_BYTES` is checked only after `note_damage`. Does nothing for one that is sound, missing, or no
    journal of version 2 or later. Raises `RunFolderError` where no row can be read.
    """
    if not (faults := _faults_of(path)):
        return
    new = path.with_name(f".{path.name}.salvaged")  # `clean` removes what a kill leaves of it
    _remove(new)
    try:
        with closing(connect(path, "mode=rw")) as damaged, closing(open_to_write(new)) as connection:
            rows, lost = _copy_rows(damaged, connection)
    except UNREADABLE as error:
        raise unusable(path, error) from error
    if not rows:
        _remove(new)
        raise RunFolderError(
            f"the journal {path} is damaged ({faults[0]}), and no row can be read; restore it from a copy, or move it"
            " away and start again"
        )
    copy = next(name for number in range(1, 1000) if not (name := path.with_name(f"damaged-{number}.sqlite")).exists())
    shutil.copyfile(path, copy)
    if (log := Path(f"{path}-wal")).exists():
        log.replace(f"{copy}-wal")
    Path(f"{path}-shm").unlink(missing_ok=True)
    new.replace(path)
    _note(path).unlink(missing_ok=True)
    notes = f"; {len(lost)} cannot be read: {_named(tuple(lost))}" if lost else ""
    console.warn(f"{path} was damaged ({faults[0]}): {rows} rows are kept{notes}; the damaged file is {copy.name}")


def note_damage(path: Path, error: BaseException) -> None:
    """Have a large file checked when it is opened next, where an error says that it is damaged."""
    if "malformed" in str(error):
        with suppress(OSError):
            _note(path).touch()


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def _faults_of(path: Path) -> tuple[str, ...]:
    """What SQLite says of a damaged journal; nothing of any other file, as opening it says what is wrong."""
    if not path.exists() or (path.stat().st_size > CHECKED_BYTES and not _note(path).exists()):
        return ()
    try:
        with closing(connect(path, "mode=rw")) as connection:
            return _faults(connection) if 1 < version_of(connection, path) <= VERSION else ()
    except (*UNREADABLE, RunFolderError):
        return ()


def _copy_rows(damaged: sqlite3.Connection, connection: sqlite3.Connection) -> tuple[int, list[str]]:
    """The number of rows copied, and table and number of those that cannot be."""
    rows, lost = 0, []
    connection.execute("BEGIN IMMEDIATE")
    for table in (*TABLES, "damaged"):
        columns = [column for _, column, *_ in damaged.execute(f"PRAGMA table_info({table})")]
        places = ", ".join("?" * len(columns))
        for number, values in _rows(damaged, table) if columns else ():
            try:
                statement = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({places})"
                rows += connection.execute(statement, values or ()).rowcount
            except (ValueError, OverflowError, sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError):
                lost.append(f"{table} {number}")
    connection.execute("COMMIT")
    return rows, lost


def _remove(path: Path) -> None:
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        file.unlink(missing_ok=True)
