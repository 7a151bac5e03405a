"""Rows of CSV and TSV: which text is such a table, and its records, of which a bad one costs itself alone."""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from distill.errors import RecipeError
from distill.formats import schemas
from distill.formats.json_rows import MAX_ROW_CHARS, ForeignRow, RejectedRow, Rows
from distill.formats.text_files import Place, fault_of, numbered_lines

DELIMITERS = ",;\t|"
PEEKED_RECORDS = 20
MOST_RECORD_CHARS = 1 << 20
MOST_READ_AGAIN = 1 << 28
"""Characters of lines that are read again behind a quotation mark without its pair."""
_NAME = re.compile(r"[A-Za-z_][\w.-]*\Z")


def delimiter_of(text: str, suffix: str) -> str | None:
    """What separates the cells of a table with a header, by its first lines; `None` where the text is no table.

    A file called .csv or .tsv is one. Another text is, if its first line has the names of a known format; or if that
    has only names, or lines have tabs, and the lines after it have as many cells.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    headers = {mark: names(_cells(lines[0], mark)) for mark in DELIMITERS}
    known = [mark for mark, header in headers.items() if len(header) > 1 and is_known(header)]
    if known or suffix in (".csv", ".tsv"):
        return known[0] if known else max(DELIMITERS, key=lambda mark: len(headers[mark]))
    return next((mark for mark, header in headers.items() if _is_table(lines, mark, len(header))), None)


def _is_table(lines: Sequence[str], mark: str, columns: int) -> bool:
    counts = {len(_cells(line, mark)) for line in lines[:PEEKED_RECORDS]}
    is_named = all(map(_NAME.match, _cells(lines[0], mark)))
    return columns > 1 and counts == {columns} and len(lines) > 1 and (mark == "\t" or (is_named and len(lines) > 2))


def names(cells: Sequence[str]) -> list[str]:
    """The names of the columns, without white space around them."""
    return [cell.strip() for cell in cells]


def is_known(header: Sequence[str]) -> bool:
    """Whether the columns are those of a known format."""
    return schemas.name_of({name.lower(): "" for name in header}) is not None


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def csv_rows(place: Place, delimiter: str) -> Rows:
    """The rows of a table; the line of a row is that of its first cell, and an empty cell is null.

    A row whose quotation marks have no pair is split without them. Raises `RecipeError` for a name that is there twice.
    """
    csv.field_size_limit(MAX_ROW_CHARS)
    lines = _Lines(place)
    header, header_line = _header(lines, delimiter, place)
    mark = delimiter if len(header) > 1 else "\x1f"  # one column has no delimiter
    while (record := lines.record(mark, len(header))) is not None:
        line, cells = record
        if isinstance(cells, RejectedRow):
            yield cells
        elif names(cells) == header:
            yield RejectedRow(line, "repeated_header", f"the names of line {header_line} again")
        elif cells:
            row = {name: cell or None for name, cell in zip_longest(header, cells) if name}
            yield ForeignRow(line, row)


def _header(lines: _Lines, delimiter: str, place: Place) -> tuple[list[str], int]:
    while (record := lines.record(delimiter, None)) is not None:
        line, cells = record
        if isinstance(cells, RejectedRow):
            raise RecipeError(f"{place}, line {line}: {cells.detail}")
        if cells:
            header = names(cells)
            twice = [name for name, times in Counter(map(str.lower, header)).items() if name and times > 1]
            if twice:
                raise RecipeError(f'{place}: two columns are called "{twice[0]}"; give each its own name')
            return header, line
    raise RecipeError(f"{place}: nothing in it; expected a header and rows")


class _Lines:
    """The lines of a table, of which some are read again."""

    def __init__(self, place: Place) -> None:
        self._place, self._lines = place, numbered_lines(place, MAX_ROW_CHARS)
        self._waiting: deque[tuple[int, str | None]] = deque()
        self._again = MOST_READ_AGAIN

    def record(self, delimiter: str, columns: int | None) -> tuple[int, list[str] | RejectedRow] | None:
        """The number of the next record's first line, and its cells or why it has none; `None` at the end.

        A record that cannot be read costs its first line: the others are read again as records of their own.
        """
        taken: list[tuple[int, str]] = []
        try:
            cells = next(csv.reader(self._feed(taken), delimiter=delimiter, strict=True), None)
            if cells is None:
                return None
            fault = fault_of("".join(text for _, text in taken))
            if fault is not None:
                return taken[0][0], RejectedRow(taken[0][0], "not_utf8", fault)
            if columns is None or len(cells) <= columns or not any(cells[columns:]):
                return taken[0][0], cells[:columns]
            why = f"{len(cells)} cells, expected {columns}"
        except csv.Error as error:
            why = f"no row of CSV ({error})"
        return self._repaired(taken, why, delimiter, columns)

    def _repaired(
        self, taken: Sequence[tuple[int, str]], why: str, delimiter: str, columns: int | None
    ) -> tuple[int, list[str] | RejectedRow]:
        (line, first), *rest = taken
        self._again -= sum(len(text) for _, text in rest)
        if self._again < 0:
            raise RecipeError(f"{self._place}, line {line}: {why}; its quotation marks have no pairs")
        self._waiting.extendleft(reversed(rest))
        plain = first.rstrip("\n").split(delimiter)
        is_row = len(plain) == columns and len(first) < MAX_ROW_CHARS and fault_of(first) is None
        return line, plain if is_row else RejectedRow(line, "bad_row", why)

    def _feed(self, taken: list[tuple[int, str]]) -> Iterator[str]:
        size = 0
        while (item := self._waiting.popleft() if self._waiting else next(self._lines, None)) is not None:
            line, text = item
            taken.append((line, text or ""))
            size += len(text) if text is not None else MAX_ROW_CHARS
            if size > MOST_RECORD_CHARS and (text is None or len(taken) > 1):
                raise csv.Error("too long")
            yield taken[-1][1]
