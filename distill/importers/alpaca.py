"""Stanford Alpaca's rows: an instruction, an input and an output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.importers import Address
from distill.records import Rejected, json_rows
from distill.shapes import Parsed, alpaca, parse


class Alpaca:
    """A JSON array, or JSON lines."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[Parsed | Rejected]:
        """What every row says."""
        return parse(json_rows(Path(address.path)), alpaca)
