"""The one reader of files that come from outside: finds out what a file is by its contents, and yields its rows.

JSON lines, JSON documents, CSV and TSV, Parquet and Arrow; each but the last two also compressed, and in any encoding
of Unicode. What holds no rows is refused: no page, recipe or picture is ever asked of a teacher line by line.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Literal, TypeAlias

from distill.errors import RecipeError
from distill.formats.csv_rows import csv_rows, delimiter_of
from distill.formats.json_documents import document_rows, wrapped
from distill.formats.json_rows import (
    MAX_ROW_CHARS,
    AsRow,
    ForeignRow,
    RejectedRow,
    Rows,
    decoder,
    line_rows,
    row_of,
)
from distill.formats.table_files import table_rows
from distill.formats.text_files import Place, data_suffix, fault_of, head_of, numbered_lines, text_of

Kind: TypeAlias = Literal["json", "csv", "table", "lines"]
TABLES = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")
"""First bytes of Parquet, of Arrow's files, and of its streams."""
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_JSON = re.compile(r"""\s*(?:\[\s*)?\{\s*["'}]""")
_STRINGS = re.compile(r'\s*\[\s*"[^\0]*"\s*\]\s*\Z')
_TAGS = re.compile(r"(?im)\s*<(?:(?:!doctype|\?xml|html|head|body|svg)\b|[!?/a-z][^\n]*>[ \t]*$)")
_YAML = re.compile(r"(?:\s|#.*\n)*(?:---[ \t]*\n|(?:- )?[a-z_][\w-]*:(?=\s))")
_NESTED = re.compile(
    r"(?m)^(?:- )?[a-z_][\w-]*:(?:[ \t]*\n[ \t]*(?:- |[ \t]\S)|[ \t]+.*\n[ \t]+(?:- )?[a-z_][\w-]*:\s)"
)
_SETTING = re.compile(r"([a-z_][\w-]*):(?: .*)?")
_LINES = "distill import FILE --from lines --as tasks --out tasks.jsonl"


def kind_of(place: Place) -> Kind:
    """What a file of rows or prompts is, by its contents. Raises `RecipeError` for one that holds neither."""
    head, suffix = head_of(place), data_suffix(place)
    if head.startswith(TABLES):
        return "table"
    text = text_of(head, place)
    if _TAGS.match(text):
        raise RecipeError(f"{place} is a page or document with tags (HTML, XML); give its rows as JSON lines or CSV")
    if delimiter_of(text, suffix) is not None and not _JSON.match(text):
        return "csv"
    if suffix in JSON_SUFFIXES or _JSON.match(text) or _STRINGS.match(text):
        return "json"
    if suffix in (".yaml", ".yml") or _is_yaml(text):
        raise RecipeError(f"{place} is YAML; give its rows as JSON lines; if its lines are prompts, type: {_LINES}")
    return "lines"


def _is_yaml(text: str) -> bool:
    """Whether a document begins, keys have more below them, or every line sets another key."""
    if (start := _YAML.match(text)) is None or start[0].rstrip().endswith("---"):
        return start is not None
    lines = [_SETTING.fullmatch(line) for line in text.splitlines() if line.strip() and line[0] != "#"]
    keys = {match[1] for match in lines if match}
    return _NESTED.search(text) is not None or (len(lines) > 1 and len(keys) == len(lines))


def rows(place: Place, as_row: AsRow = row_of) -> Generator[ForeignRow | RejectedRow, None, None]:
    """Every row of a file, or why it cannot be read. Raises `RecipeError` for a file that holds none."""
    kind = kind_of(place)
    if kind == "table":
        yield from table_rows(place)
    elif kind == "csv":
        mark = delimiter_of(text_of(head_of(place), place), data_suffix(place))
        yield from csv_rows(place, mark or ",")
    elif kind == "json" and _is_document(place):
        yield from document_rows(place, as_row)
    else:
        yield from _json_lines(place, as_row)


def _json_lines(place: Place, as_row: AsRow) -> Rows:
    for line in text_lines(place):
        if isinstance(line, RejectedRow):
            yield line
            continue
        for row in line_rows(*line, as_row):
            inner = wrapped(row.value, place) if isinstance(row, ForeignRow) else None
            yield from [row] if inner is None else (as_row(each, line[1], row.line) for each in inner)


def text_lines(place: Place) -> Iterator[tuple[int, str] | RejectedRow]:
    """Every line of a text that is not blank, without the white space around it. Raises `RecipeError`."""
    for number, line in numbered_lines(place, MAX_ROW_CHARS):
        if line is None:
            yield RejectedRow(number, "too_long", f"over {MAX_ROW_CHARS:,} characters in one line")
        elif (fault := fault_of(line)) is not None:
            yield RejectedRow(number, "not_utf8", fault)
        elif text := line.strip():
            yield number, text


def _is_document(place: Place) -> bool:
    """Whether the file is one value of JSON, or values over several lines: the first line alone is none."""
    lines = (line for _, line in numbered_lines(place, MAX_ROW_CHARS) if line is None or line.strip())
    with closing(lines):
        first = next(lines, "")
        if first is None or first.lstrip().startswith("["):
            return True
        try:
            decoder.raw_decode(text := first.strip())
        except (ValueError, RecursionError) as error:
            return getattr(error, "pos", 0) >= len(text) or not (next(lines, "") or "").lstrip().startswith("{")
    return False
