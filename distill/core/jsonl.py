"""Reads and writes JSON Lines of tasks, sessions and verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.core import processes
from distill.core.files import field_names, json_text, replacing
from distill.core.json_values import storable
from distill.errors import DistillError
from distill.types import Pair, Session

FIRST_META = {"distill": "rows differ in their meta"}
"""Extra key added to `meta` of the first row only.

`datasets` takes a column's type from a file's first 10 MiB. Where two rows there differ in the keys of an object, it
takes the column for JSON of any shape; else a later row with another key, a label where there was none before, or a
fraction among whole numbers could not be read.
"""


def _fields(value: Any) -> Any:
    """The fields of one core type, or the JSON of a value that JSON lacks."""
    kind: type = type(value)
    return {name: getattr(value, name) for name in names} if (names := field_names(kind)) else storable(value)


_encode: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_fields).encode
"""The JSON text of core types nested in dictionaries and lists; twice as fast as `to_json` and `json.dumps`."""


def _line(row: Any) -> str:
    try:
        return _encode(row)
    except (ValueError, TypeError):  # infinities, keys that are no text
        return json_text(row)


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


def read_sessions(path: Path) -> list[Session]:
    """The sessions and pairs of a sessions.jsonl, kept.jsonl or test.jsonl, in order.

    A row with `rejected` is a `Pair`; other keys are ignored. Raises `DistillError` with the row's number.
    """
    from pydantic import TypeAdapter, ValidationError

    adapters: dict[bool, TypeAdapter[Any]] = {False: TypeAdapter(Session), True: TypeAdapter(Pair)}
    sessions = list[Session]()
    for number, row in enumerate(read_jsonl(path), start=1):
        is_pair = row.get("rejected") is not None
        try:
            sessions.append(adapters[is_pair].validate_python(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            kind = "Pair" if is_pair else "Session"
            raise DistillError(f"{path}: row {number} is no {kind}: {where}: {first['msg']}") from error
    if sessions:
        sessions[0] = replace(sessions[0], meta=own_meta(sessions[0].meta))
    return sessions


def own_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """A row's meta without the extra key of a file's first row."""
    return {key: value for key, value in meta.items() if key not in FIRST_META}


def write_rows(path: Path, rows: Iterable[Any]) -> int:
    """Write rows as JSONL beside `path` and rename; returns how many. A crash leaves the old file whole."""
    count = 0
    with replacing(path) as new, new.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(f"{_line(row)}\n")
            count += 1
    return count


def fault_of(row: Any) -> str:
    """Why a row cannot be written as JSON in UTF-8; empty where it can."""
    try:
        _line(row).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return ""


def cut(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the rows of steps up to `step`, in the file too; returns them. A killed process may have torn the last."""
    kept = [row for row in whole_rows(path) if row["step"] <= step]
    rewrite(path, kept)
    return kept


def rewrite(path: Path, rows: Sequence[Any]) -> None:
    """Replace the file's rows, or delete the file where there are none; only the first of several processes writes."""
    if not processes.is_first():
        return
    if rows:
        write_rows(path, rows)
    else:
        path.unlink(missing_ok=True)


def append(path: Path, rows: Iterable[Any]) -> None:
    """Append rows in one write; only the first of several processes writes."""
    if processes.is_first():
        with path.open("a", encoding="utf-8", newline="\n") as out:
            out.write("".join(f"{_line(row)}\n" for row in rows))


def whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, up to a line that was cut short."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                return
            yield row
