"""Rows of foreign files, read or rejected, and how one line of JSON becomes rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from distill.core.json_values import storable

MAX_ROW_CHARS = 1 << 22
"""Longest line, and longest element of an array: a million tokens, or 0.2 GB where it is empty lists."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

decoder = json.JSONDecoder(parse_constant=lambda _: None, parse_float=lambda text: storable(float(text)))
"""Reads NaN and infinities, which JSON cannot hold, as null."""


@dataclass(frozen=True, slots=True)
class ForeignRow:
    """One object of a file."""

    line: int
    """Its line number, or its number in a table, from 1."""
    value: Mapping[str, Any]
    repairs: tuple[str, ...] = ()
    """Repairs needed to read it."""


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that cannot be used, and why."""

    line: int
    reason: str
    """A short code: `not_json`, `no_answer`, `tool_turn` …"""
    detail: str
    """One line for the reader."""


Rows: TypeAlias = Iterator[ForeignRow | RejectedRow]


AsRow: TypeAlias = Callable[[Any, str, int], ForeignRow | RejectedRow]
"""Makes a row of a value, the text it was read from, and its line."""


def line_rows(line: int, text: str, as_row: AsRow | None = None) -> Rows:
    """The row of a line, or its rows where no line ends between them, as in `cat` of files without a last line end."""
    at = 0
    while at < len(text):
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield RejectedRow(line, "not_json", f"not JSON ({error})")
            return
        yield (as_row or row_of)(value, text[at:end], line)
        at = end + len(text[end:]) - len(text[end:].lstrip("\ufeff \t,"))


def row_of(value: Any, text: str, line: int) -> ForeignRow | RejectedRow:
    """The row of a value that was read from this text; only an object is one."""
    if not isinstance(value, dict):
        return RejectedRow(line, "no_object", f"found {type(value).__name__}, expected an object")
    if _SURROGATE.search(text) and (repaired := storable(value)) != value:
        return ForeignRow(line, repaired, ("half_character_replaced",))
    return ForeignRow(line, value)


def any_row(value: Any, text: str, line: int) -> ForeignRow:
    """The row of any value; what is no object is put into one, under no name."""
    return ForeignRow(line, value if isinstance(value, dict) else {"": value})
