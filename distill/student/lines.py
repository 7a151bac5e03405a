"""Log files of JSON lines, which a resumed run cuts back to where its checkpoint stands; loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distill import processes
from distill.rows import append_rows, write_rows

QUARANTINED = "quarantined"
"""The event of sessions that are set aside: it stays, as they stay aside."""


def cut(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the rows of steps up to `step`, in the file too; returns them. A killed process may have torn the last."""
    kept = [row for row in whole_rows(path) if row["step"] <= step or row.get("event") == QUARANTINED]
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
