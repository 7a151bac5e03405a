"""Imports files of text, JSON, CSV or tables: a prompt per line, Alpaca, OpenAI, ShareGPT and other schemas."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from distill.formats import schemas
from distill.formats.containers import rows, text_lines
from distill.formats.importers import Address, RowImporter, known_shapes
from distill.formats.json_rows import RejectedRow, Rows
from distill.formats.oasst_trees import threads
from distill.formats.parsed_row import ParsedRow
from distill.types import Message


class LinesImporter:
    """A text file with one prompt per line: tasks, not sessions."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """Every line that is not blank."""
        for row in text_lines(Path(address.path)):
            if isinstance(row, RejectedRow):
                yield row
                continue
            line, text = row
            messages = (Message("user", text),)
            yield ParsedRow(line=line, messages=messages, instruction=text, meta={"source": address.name})


def _file(address: Address) -> Rows:
    """The rows of a file of any kind."""
    return rows(Path(address.path))


def _shaped(name: str) -> partial[RowImporter]:
    """An importer of rows that all have one shape."""
    return partial(RowImporter, _file, partial(schemas.parse, shape=schemas.SHAPES[name]))


alpaca = _shaped("alpaca")
distill = _shaped("distill")
json = partial(RowImporter, _file, known_shapes)
oasst = partial(RowImporter, _file, threads)
openai = _shaped("openai")
preference = _shaped("preference")
prompt_response = _shaped("prompt_response")
questions = _shaped("questions")
self_instruct = _shaped("self_instruct")
sharegpt = _shaped("sharegpt")
text = _shaped("text")
