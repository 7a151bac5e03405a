"""Open Assistant's conversation trees: of each, the path of the best-ranked replies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.importers import Address
from distill.records import Rejected, json_rows
from distill.shapes import Parsed
from distill.trees import threads


class Oasst:
    """JSON lines (not packed) of trees or of single messages."""

    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[Parsed | Rejected]:
        """What every tree says."""
        return threads(json_rows(Path(address.path)))
