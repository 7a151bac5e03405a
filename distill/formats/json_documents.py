"""Streams the rows of one JSON document: an array, a wrapper such as `{"data": […]}`, or objects one after the other.

A row that cannot be read costs itself: reading goes on where the next one opens as those before it did.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from json import JSONDecodeError
from typing import Any, TextIO

from distill.errors import RecipeError
from distill.formats import schemas
from distill.formats.json_rows import MAX_ROW_CHARS, AsRow, ForeignRow, RejectedRow, Rows, decoder, row_of
from distill.formats.text_files import Place, fault_of, open_text

CHUNK_CHARS = 1 << 16
"""Small, since an error of `json` counts the lines before it in the piece."""
_ELEMENT = re.compile("[^\\s,\ufeff]")
_KEY = re.compile(r'[\s,]*"((?:[^"\\]|\\.)*)"\s*:\s*')
_OPENING = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:')
_ROWS = re.compile(r"\[\s*(?=\{)")
_END = re.compile(r"\][\s}]*\Z")
_OTHER_ROWS = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*\{')
_KEPT_CHARS = 1 << 10
"""Of the text before the current position: longer than what precedes a row."""
_TOKEN_CHARS = 16
"""Longer than a number's exponent, a name such as `-Infinity`, or an escape."""


def document_rows(place: Place, as_row: AsRow = row_of) -> Rows:
    """Every row of the document. Memory holds one row and one piece. Raises `RecipeError` where it is cut off."""
    with open_text(place) as text:
        reader = _Elements(text, place, as_row)
        while (row := reader.row()) is not None:
            yield row


def wrapped(value: Mapping[str, Any], place: Place) -> list[Any] | None:
    """The rows in an object around them; `None` for a row. Raises `RecipeError` where it has several lists of rows."""
    if _is_one_row(value):
        return None
    lists = {key: rows for key, rows in value.items() if isinstance(rows, list) and rows and _is_row(rows[0])}
    if len(lists) > 1:
        raise RecipeError(f"{place}: it has several lists of rows ({', '.join(lists)}); save the one to read by itself")
    return next(iter(lists.values()), None)


def _is_one_row(value: Mapping[str, Any]) -> bool:
    """Whether an object is a row itself: one of a known format, or with an id, as FastChat's answers (`choices`)."""
    return schemas.name_of(value) is not None or any(str(key).endswith("id") for key in value)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and schemas.name_of(value) is not None


class _Elements:
    """The part of a long document being parsed."""

    def __init__(self, text: TextIO, place: Place, as_row: AsRow) -> None:
        self._text, self._place, self._as_row = text, place, as_row
        self._buffer, self._at, self._line = "", 0, 1
        self._indent, self._last = "", ""
        self._is_wrapped = False
        self._is_array = self._enter()

    def row(self) -> ForeignRow | RejectedRow | None:
        """The next row; `None` at the end."""
        char = self._next_char()
        if self._is_array and char == "]":
            self._require_end()
            return None
        if char is None:
            if self._is_array:
                raise RecipeError(f"{self._place}:{self._line}: the array has no end; is the file cut off?")
            return None
        while True:
            try:
                value, end = decoder.raw_decode(self._buffer, self._at)
                return self._read_row(value, end)
            except (ValueError, RecursionError) as error:
                if len(self._buffer) - self._at >= MAX_ROW_CHARS:
                    return self._rejected("too_long", f"over {MAX_ROW_CHARS:,} characters in one row")
                if not (_is_unfinished(error, self._buffer) and self._read()):
                    return self._rejected("not_json", f"not JSON ({getattr(error, 'msg', error)})")

    def _read_row(self, value: Any, end: int) -> ForeignRow | RejectedRow:
        line, text = self._line, self._buffer[self._at : end]
        self._last = text[:_KEPT_CHARS]
        self._move(end)
        fault = fault_of(text)
        return self._as_row(value, text, line) if fault is None else RejectedRow(line, "not_utf8", fault)

    def _rejected(self, reason: str, why: str) -> RejectedRow:
        """The rejected row, after going to the next. Raises `RecipeError` where there is none, and no end."""
        row = RejectedRow(self._line, reason, why)
        opening = self._next_opening()
        self._at += 1
        while (match := opening.search(self._buffer, self._at)) is None:
            self._move(max(self._at, len(self._buffer) - _KEPT_CHARS))
            if not self._read():
                break
        if match is not None:
            self._move(match.end())
        elif self._is_array:
            if not _END.search(self._buffer):
                raise RecipeError(f"{self._place}:{row.line}: {why}; is the file cut off?")
            self._is_array = False
        if match is None:
            self._move(len(self._buffer))
        return row

    def _next_opening(self) -> re.Pattern[str]:
        """What precedes the next row: a line begun like that of this row, or else an object with the same first key."""
        if self._indent:
            return re.compile(rf"{self._indent}(?=\{{)")
        opening = _OPENING.match(self._buffer, self._at) or _OPENING.match(self._last)
        return re.compile(rf"(?=\{{\s*{re.escape(opening[1])}\s*:)" if opening else r"(?=\{\s*\")")

    def _enter(self) -> bool:
        """Go into the array, or that of a wrapper; whether there is one."""
        if (char := self._next_char()) == "{":
            while len(self._buffer) < CHUNK_CHARS and self._read():
                pass
            start = self._list_start()
            self._is_wrapped = start is not None
            self._move(self._at if start is None else start)
        self._at += char == "["
        return self._is_wrapped or char == "["

    def _list_start(self) -> int | None:
        """Where the rows of a wrapper begin; `None` in a row."""
        try:
            value, _ = decoder.raw_decode(self._buffer, self._at)
            if wrapped(value, self._place) is None:
                return None
        except (ValueError, RecursionError):
            pass  # too long for the buffer, or with a bad row
        seen: dict[str, Any] = {}
        at = self._at + 1
        while (key := _KEY.match(self._buffer, at)) is not None:
            seen[key[1]] = ""
            if _is_one_row(seen):
                return None
            try:
                rows = _ROWS.match(self._buffer, key.end())
                value, at = decoder.raw_decode(self._buffer, rows.end() if rows else key.end())
                if rows and not _is_row(value):
                    _, at = decoder.raw_decode(self._buffer, key.end())
                elif rows:
                    return rows.end()
            except (ValueError, RecursionError):
                return rows.end() if rows else None
        return None

    def _require_end(self) -> None:
        """Raise `RecipeError` for text behind an array, or for another list of rows in a wrapper."""
        where, rest = f"{self._place}:{self._line}", self._buffer[self._at + 1 :] + self._text.read(CHUNK_CHARS)
        if not self._is_wrapped and rest.strip():
            raise RecipeError(f"{where}: text after the array's end; expected one array, or JSONL")
        if self._is_wrapped and (other := _OTHER_ROWS.search(rest)):
            raise RecipeError(f"{where}: another list of rows ({other[1]}) follows; save the one to read by itself")

    def _next_char(self) -> str | None:
        """Go to the next character that is neither white space nor a comma, and return it; `None` at the end."""
        gap = ""
        while (match := _ELEMENT.search(self._buffer, self._at)) is None:
            gap += self._buffer[self._at :]
            self._move(len(self._buffer))
            if not self._read():
                return None
        gap += self._buffer[self._at : match.start()]
        self._indent = gap[gap.rfind("\n") :] if "\n" in gap else ""
        self._move(match.start())
        return match[0]

    def _move(self, to: int) -> None:
        self._line += self._buffer.count("\n", self._at, to)
        self._at = to

    def _read(self) -> bool:
        """Read another piece, and drop the text before the current position; whether there was one."""
        rest = self._buffer[self._at :]
        piece = self._text.read(max(CHUNK_CHARS, len(rest)))
        self._buffer, self._at = rest + piece, 0
        return bool(piece)


def _is_unfinished(error: ValueError | RecursionError, text: str) -> bool:
    """Whether the text that could not be parsed may go on behind its end."""
    at = error.pos if isinstance(error, JSONDecodeError) else -1
    return at >= 0 and (at >= len(text) - _TOKEN_CHARS or str(error).startswith("Unterminated string"))
