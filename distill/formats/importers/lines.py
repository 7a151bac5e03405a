"""Imports a text file with one prompt per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.formats.importers import Address
from distill.formats.json_rows import RejectedRow, text_lines
from distill.formats.schemas import ParsedRow
from distill.types import Message


class LinesImporter:
    """Prompts without answers: tasks, not sessions."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """Every line that is not blank."""
        for found in text_lines(Path(address.path)):
            if isinstance(found, RejectedRow):
                yield found
            else:
                line, text = found
                yield ParsedRow(
                    line=line, messages=(Message("user", text),), instruction=text, meta={"source": address.name}
                )
