"""Rows of other formats, written and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from distill.formats import importers, schemas
from distill.formats.importers import Address
from distill.formats.json_rows import ForeignRow, RejectedRow
from distill.formats.parsed_row import ParsedRow


def written(path: Path, rows: list[Any], *, array: bool = False) -> str:
    text = json.dumps(rows, indent=1) if array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def read(name: str, path: str, **options: Any) -> list[ParsedRow | RejectedRow]:
    return list(importers.read(name, Address(path, **options)))


def reason(name: str, row: Any) -> str:
    [found] = schemas.parse(iter([ForeignRow(1, row)]), schemas.SHAPES[name])
    assert isinstance(found, RejectedRow), found
    return found.reason


def said(found: ParsedRow) -> list[str]:
    return [f"{message.role[0]}: {message.content}" for message in found.messages]


def sharegpt(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"id": "x", "conversations": [{"from": who, "value": what} for who, what in turns]}


INNER = st.sampled_from(("role", "content", "from", "value", "text", "type", "input", "output", "id", "meta"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(INNER, inner, max_size=4),
    max_leaves=12,
)
