"""Streams rows of foreign JSON Lines or JSON array files, each with its line number.

A row that cannot be read is rejected with its line number, and reading goes on; only a broken array ends it, since the
start of its next element is unknown.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from distill.errors import RecipeError

CHUNK_CHARS = 1 << 20
MAX_ROW_CHARS = 1 << 22
"""Largest line in bytes, and element of an array in characters: a million tokens, or 0.2 GB where it is empty lists.
A longer line is rejected; a longer element counts as unterminated."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_ELEMENT = re.compile(r"[^\s,]")


def storable(value: Any) -> Any:
    """A value that JSON in UTF-8 can hold: U+FFFD for lone surrogates, null for infinities, text for other types."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, Mapping):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, int) else str(value)


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


def json_rows(path: Path) -> Generator[ForeignRow | RejectedRow, None, None]:
    """Every object of a JSONL file, or of a file that holds one JSON array. Raises `RecipeError`."""
    if _first_char(path) == b"[":
        yield from _array_rows(path)
        return
    for row in text_lines(path):
        yield row if isinstance(row, RejectedRow) else _line_row(*row)


def text_lines(path: Path) -> Iterator[tuple[int, str] | RejectedRow]:
    """Every line of a text file that is not blank, without the white space around it. Raises `RecipeError`."""
    with _open(path) as file:
        for line, raw in enumerate(iter(lambda: file.readline(MAX_ROW_CHARS), b""), start=1):
            if _is_cut(raw, file):
                yield RejectedRow(line, "too_long", f"over {MAX_ROW_CHARS:,} bytes in one line")
                continue
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                yield RejectedRow(line, "not_utf8", str(error))
                continue
            if text:
                yield line, text


def _is_cut(raw: bytes, file: BinaryIO) -> bool:
    """Whether a line is longer than `raw`, its start; reads on to its end."""
    cut = False
    while len(raw) == MAX_ROW_CHARS and not raw.endswith(b"\n"):
        raw, cut = file.readline(MAX_ROW_CHARS), True
    return cut


def starts_with(path: Path, magic: bytes) -> bool:
    """Whether the file begins with these bytes. Raises `RecipeError`."""
    with _open(path) as file:
        return file.read(len(magic)) == magic


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise RecipeError(f"cannot read {path}: it is no file, and rows are read more than once; save them to a file")
    try:
        return path.open("rb")
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}; check the path") from error


def _first_char(path: Path) -> bytes:
    """The first byte after white space and a byte order mark."""
    char = b""
    with _open(path) as file:
        while not char and (piece := file.read(4096)):
            char = piece.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return char


def _line_row(line: int, text: str) -> ForeignRow | RejectedRow:
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        return RejectedRow(line, "not_json", f"not JSON ({error})")
    return _row(value, text, line)


def _row(value: Any, text: str, line: int) -> ForeignRow | RejectedRow:
    if not isinstance(value, dict):
        return RejectedRow(line, "no_object", f"found {type(value).__name__}, expected an object")
    if _SURROGATE.search(text) and (repaired := storable(value)) != value:
        return ForeignRow(line, repaired, ("half_character_replaced",))
    return ForeignRow(line, value)


def _array_rows(path: Path) -> Rows:
    """The elements of an array, read in pieces; memory holds one element and one piece."""
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as text:
        reader = _ArrayReader(text, path)
        while (row := reader.row()) is not None:
            yield row


class _ArrayReader:
    """The part of a long array being parsed."""

    def __init__(self, text: io.TextIOWrapper, path: Path) -> None:
        self._text, self._path = text, path
        self._buffer, self._at, self._line = "", 0, 1
        self._next_char()
        self._at += 1  # the bracket that opens the array

    def row(self) -> ForeignRow | RejectedRow | None:
        """The next element; `None` at the array's end."""
        if self._next_char() == "]":
            if (self._buffer[self._at + 1 :] + self._piece(CHUNK_CHARS)).strip():
                where = f"{self._path}:{self._line}"
                raise RecipeError(f"{where}: text after the array's end; expected one array, or JSONL")
            return None
        while True:
            try:
                value, end = decoder.raw_decode(self._buffer, self._at)
                break
            except (ValueError, RecursionError) as error:
                self._read(error)
        row = _row(value, self._buffer[self._at : end], self._line)
        self._move(end)
        return row

    def _next_char(self) -> str:
        """Go to the next character that is neither white space nor a comma, and return it."""
        while (match := _ELEMENT.search(self._buffer, self._at)) is None:
            self._move(len(self._buffer))
            self._read()
        self._move(match.start())
        return match[0]

    def _move(self, to: int) -> None:
        self._line += self._buffer.count("\n", self._at, to)
        self._at = to

    def _read(self, error: BaseException | None = None) -> None:
        """Read another piece, and drop the text before the current position."""
        rest = self._buffer[self._at :]
        piece = self._piece(max(CHUNK_CHARS, len(rest))) if len(rest) < MAX_ROW_CHARS else ""
        if not piece:
            why = f"not JSON ({getattr(error, 'msg', error)})" if error is not None else "the array has no end"
            raise RecipeError(f"{self._path}:{self._line}: {why}; is the file cut off?")
        self._buffer, self._at = rest + piece, 0

    def _piece(self, size: int) -> str:
        try:
            return self._text.read(size)
        except UnicodeDecodeError as error:
            raise RecipeError(f"{self._path}: {error}; expected a UTF-8 file") from error
