"""Streams a dataset from the Hugging Face Hub; never runs code from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.core.extras import install
from distill.errors import MissingPackage, RecipeError, one_line
from distill.formats.importers import HUB_ID, Address, known_shapes
from distill.formats.json_rows import ForeignRow, RejectedRow, Rows
from distill.formats.schemas import ParsedRow


class HubImporter:
    """`owner/name`, or a local folder laid out as one on the Hub; `split` is `train` where it is left out."""

    takes: frozenset[str] = frozenset({"split", "revision"})

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every row says."""
        if not Path(address.path).is_dir() and not HUB_ID.match(address.path):
            raise RecipeError(f"{address.path!r} is no Hub id; expected owner/name, such as OpenAssistant/oasst1")
        return known_shapes(_rows(address))


def _rows(address: Address) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise MissingPackage(f"datasets is not installed; type: {install('data')}") from error
    table: Any
    try:
        # datasets has had no `trust_remote_code` since 4.0: it refuses a dataset that comes with a script
        table = datasets.load_dataset(
            address.path, split=address.split or "train", revision=address.revision, streaming=True
        )
        for number, value in enumerate(table, start=1):
            yield ForeignRow(number, value)
    except (OSError, ValueError, RuntimeError) as error:  # of datasets, huggingface_hub and HTTP, no network among them
        why = one_line(str(error), 160)
        raise RecipeError(
            f"{address.path}: cannot be read from the Hub ({why}); check id, split and revision"
        ) from error
