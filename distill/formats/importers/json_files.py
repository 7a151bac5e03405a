"""Imports text, JSON and JSON Lines files: a prompt per line, Alpaca, OpenAI, ShareGPT and other schemas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distill.formats import schemas
from distill.formats.importers import Address
from distill.formats.json_rows import RejectedRow, json_rows, text_lines
from distill.formats.oasst_trees import threads
from distill.types import Message


@dataclass(frozen=True, slots=True)
class JsonImporter:
    """A JSON array, or JSON lines, whose rows have one shape."""

    shape: schemas.Shape
    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[schemas.ParsedRow | RejectedRow]:
        """The contents of every row."""
        return schemas.parse(json_rows(Path(address.path)), self.shape)


class OasstImporter:
    """JSON lines (not packed) of trees or of single messages: the path of best-ranked replies in each tree."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[schemas.ParsedRow | RejectedRow]:
        """The conversation of every tree."""
        return threads(json_rows(Path(address.path)))


class LinesImporter:
    """A text file with one prompt per line: tasks, not sessions."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[schemas.ParsedRow | RejectedRow]:
        """Every line that is not blank."""
        for row in text_lines(Path(address.path)):
            if isinstance(row, RejectedRow):
                yield row
                continue
            line, text = row
            messages = (Message("user", text),)
            yield schemas.ParsedRow(line=line, messages=messages, instruction=text, meta={"source": address.name})


alpaca = partial(JsonImporter, schemas.alpaca)
distill = partial(JsonImporter, schemas.own)
openai = partial(JsonImporter, schemas.openai)
prompt_response = partial(JsonImporter, schemas.prompt_response)
questions = partial(JsonImporter, schemas.questions)
self_instruct = partial(JsonImporter, schemas.self_instruct)
sharegpt = partial(JsonImporter, schemas.sharegpt)
