"""Reads and writes JSON Lines of tasks, sessions and verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.core import processes
from distill.core.files import write_atomically
from distill.errors import DistillError
from distill.types import Session, Task

if TYPE_CHECKING:
    from pydantic import TypeAdapter


FIRST_META = {"distill": "rows differ in their meta"}
"""Extra key added to `meta` of the first row only.

`datasets` takes a column's type from a file's first 10 MiB. Where two rows there differ in the keys of an object, it
takes the column for JSON of any shape; else a later row with another key, a label where there was none before, or a
fraction among whole numbers could not be read.
"""


def to_json(value: Any) -> Any:
    """The plain JSON value of core types nested in mappings and sequences."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    kind: type = type(value)
    if names := _field_names(kind):
        return {name: to_json(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


def _opened(value: Any) -> dict[str, Any]:
    """One core type as a dictionary of what it holds."""
    kind: type = type(value)
    if not (names := _field_names(kind)):
        raise TypeError(f"{kind.__name__} is no JSON value")
    return {name: getattr(value, name) for name in names}


_line: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, default=_opened).encode
"""The JSON text of core types nested in dictionaries and lists, in half the time of `to_json` and `json.dumps`."""


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Each object of a JSONL file. Raises `DistillError` with the line's number."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _object(line, f"{path}:{number}")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DistillError(f"{where}: not JSON ({error}); expected one JSON object a line") from error
    if not isinstance(value, dict):
        raise DistillError(f"{where}: found {type(value).__name__}, expected one JSON object a line")
    return value


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _read(path: Path, kind: type) -> list[Any]:
    from pydantic import ValidationError

    rows = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            rows.append(_adapter(kind).validate_python(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DistillError(f"{path}: row {number} is no {kind.__name__}: {where}: {first['msg']}") from error
    return rows


def read_tasks(path: Path) -> list[Task]:
    """The tasks of a tasks.jsonl, in order."""
    return _read(path, Task)


def read_sessions(path: Path) -> list[Session]:
    """The sessions of a sessions.jsonl, kept.jsonl or test.jsonl, in order; other keys of a row are ignored."""
    sessions: list[Session] = _read(path, Session)
    if sessions:
        sessions[0] = replace(sessions[0], meta=own_meta(sessions[0].meta))
    return sessions


def own_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """A row's meta without what a file's first row says to its readers."""
    return {key: value for key, value in meta.items() if key not in FIRST_META}


def write_rows(path: Path, rows: Iterable[Any]) -> int:
    """Write rows as JSONL beside `path` and rename; returns how many. A crash leaves the old file whole."""
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for row in rows:
            count += 1
            yield f"{_line(row)}\n"

    write_atomically(path, lines())
    return count


def write_json(path: Path, value: Any) -> None:
    """Write one indented JSON value beside `path` and rename."""
    write_atomically(path, [json.dumps(to_json(value), ensure_ascii=False, indent=1) + "\n"])


def append_row(path: Path, row: Any) -> None:
    """Append one row to a log-like JSONL file."""
    append_rows(path, [row])


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Append rows to a log-like JSONL file, in one go."""
    with path.open("a", encoding="utf-8") as out:
        out.write("".join(f"{_line(row)}\n" for row in rows))


def cut(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the rows of steps up to `step`, in the file too; returns them. A killed process may have torn the last."""
    kept = [row for row in whole_rows(path) if row["step"] <= step]
    rewrite(path, kept)
    return kept


def rewrite(path: Path, rows: Sequence[Any]) -> None:
    """Have the file hold these rows, and be none where there are none; only the first of several processes writes."""
    if not processes.is_first():
        return
    if rows:
        write_rows(path, rows)
    else:
        path.unlink(missing_ok=True)


def append(path: Path, rows: Iterable[Any]) -> None:
    """Add rows; only the first of several processes writes."""
    if processes.is_first():
        append_rows(path, rows)


def whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, but for a last line that was cut short."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                return
            yield row
