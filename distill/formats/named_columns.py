"""Rows of plain tables whose columns the user names: a question, its answer, a system message and a reference."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from typing import Any

from distill.core.registry import suggest
from distill.errors import RecipeError, shorten
from distill.formats import schemas
from distill.formats.json_rows import ForeignRow, RejectedRow, Rows
from distill.formats.parsed_row import ID_KEYS, LABEL_KEYS, META_KEYS, REFERENCE_KEYS, Columns, ParsedRow
from distill.formats.single_turn import single
from distill.text.references import carried

PEEKED = 20
"""Rows of which at least one must have each named column."""
HOW_TO_NAME = "; columns of other names are given by --prompt and --answer (in a recipe `prompt:` and `answer:`)"
MOST_SHOWN = 20
"""Columns of a file that an error lists."""


@dataclass(frozen=True, slots=True)
class NamedColumns:
    """The columns that hold a row's question, answer, system message and reference; names without case."""

    prompt: str | None = None
    """Without it, question and answer are read by the row's known format."""
    answer: str | None = None
    system: str | None = None
    reference: str | None = None

    def parse(self, rows: Rows, place: object) -> Iterator[ParsedRow | RejectedRow]:
        """The contents of every row. Raises `RecipeError` for a column that the first rows of `place` lack."""
        peeked = list(islice(rows, PEEKED))
        self.require([row for row in peeked if isinstance(row, ForeignRow)], place)
        is_label = self.reference is not None and self.reference.lower() in LABEL_KEYS
        return schemas.parse(chain(peeked, rows), self._shape, named=self.prompt is not None or is_label)

    def require(self, rows: Sequence[ForeignRow], place: object) -> None:
        """Raise `RecipeError` for a column that none of the rows has."""
        columns = list(dict.fromkeys(str(name) for row in rows for name in row.value))
        known = {name.lower(): name for name in columns}
        for name in self._by_key().values():
            if rows and name.lower() not in known:
                hint = suggest(name.lower(), known)
                hint = re.sub('"(.+)"', lambda match: f'"{known[match[1]]}"', hint) if "did you mean" in hint else ";"
                more = " …" if len(columns) > MOST_SHOWN else ""
                shown = ", ".join(shorten(one, 60) for one in columns[:MOST_SHOWN]) + more
                raise RecipeError(f'{place}: no column "{name}"{hint} its columns are {shown}')

    def _by_key(self) -> dict[str, str]:
        names = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: name for key, name in names.items() if name is not None}

    def _shape(self, row: ForeignRow) -> Iterator[ParsedRow | RejectedRow]:
        meta = {} if self.reference is None else carried({"reference": row.value.get(self.reference.lower())})
        for parsed in self._unreferenced(row):
            yield replace(parsed, meta={**parsed.meta, **meta}) if isinstance(parsed, ParsedRow) else parsed

    def _unreferenced(self, row: ForeignRow) -> Iterator[ParsedRow | RejectedRow]:
        if self.prompt is None:
            return schemas.shape_for(row)(row)
        named = {key: _as_text(row.value.get(name.lower())) for key, name in self._by_key().items()}
        kept = {key: row.value[key] for key in (*ID_KEYS, *META_KEYS, *REFERENCE_KEYS) if key in row.value}
        return single(replace(row, value=Columns({**kept, **named})))


def named_columns(
    prompt: str | None, answer: str | None, system: str | None, reference: str | None = None
) -> NamedColumns | None:
    """The columns that a recipe or a command names; `None` for none.

    Raises `RecipeError` for an answer or a system message without `prompt`.
    """
    if prompt is None and (answer is not None or system is not None):
        raise RecipeError("answer and system name columns beside that of the prompt; name it as well: prompt")
    return NamedColumns(prompt, answer, system, reference) if prompt is not None or reference is not None else None


def _as_text(value: Any) -> Any:
    """A number or a truth value as JSON writes it; lists of turns and texts as they are."""
    return json.dumps(value) if isinstance(value, (bool, int, float)) else value
