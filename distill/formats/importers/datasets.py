"""Imports a folder written by `datasets.save_to_disk`, in one of the known schemas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distill.core.extras import install
from distill.core.registry import suggest
from distill.errors import MissingPackage, RecipeError, one_line
from distill.formats.importers import Address, known_shapes
from distill.formats.json_rows import ForeignRow, RejectedRow, Rows
from distill.formats.schemas import ParsedRow


class DatasetsImporter:
    """One dataset, or the split of a dictionary of them that `split` names (`train` where it is left out)."""

    takes: frozenset[str] = frozenset({"split"})

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every row says."""
        return known_shapes(_rows(address))


def _rows(address: Address) -> Rows:
    for number, value in enumerate(_table(address), start=1):
        yield ForeignRow(number, value)


def _table(address: Address) -> Any:
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise MissingPackage(f"datasets is not installed; type: {install('data')}") from error
    try:
        found = load_from_disk(address.path)
    except (OSError, ValueError, KeyError) as error:
        why = one_line(str(error), 120)
        raise RecipeError(f"{address.path}: no folder that `save_to_disk` wrote ({why})") from error
    if not isinstance(found, DatasetDict):
        if address.split is not None:
            raise RecipeError(f"{address.path}: one dataset without splits; leave the split out")
        return found
    split = address.split or "train"
    if split not in found:
        raise RecipeError(f'{address.path}: no split "{split}"{suggest(split, list(found))}')
    return found[split]
