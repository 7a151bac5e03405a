"""Imports Open Assistant conversation trees: the path of best-ranked replies in each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.formats.importers import Address
from distill.formats.json_rows import RejectedRow, json_rows
from distill.formats.oasst_trees import threads
from distill.formats.schemas import ParsedRow


class OasstImporter:
    """JSON lines (not packed) of trees or of single messages."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every tree says."""
        return threads(json_rows(Path(address.path)))
