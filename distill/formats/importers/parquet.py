"""Imports Parquet files in one of the known schemas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.core.extras import install
from distill.errors import MissingPackage, RecipeError, one_line
from distill.formats.importers import Address, known_shapes
from distill.formats.json_rows import ForeignRow, RejectedRow, Rows
from distill.formats.schemas import ParsedRow

BATCH_ROWS = 1024


class ParquetImporter:
    """A file, or a folder of them in the order of their names; `split` picks those whose name starts with it."""

    takes: frozenset[str] = frozenset({"split"})

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """What every row says; its line is its number over all files."""
        return known_shapes(_rows(_files(Path(address.path), address.split)))


def _files(path: Path, split: str | None) -> list[Path]:
    found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    found = [file for file in found if split is None or file.name.startswith(split)]
    if not found:
        raise RecipeError(f"{path}: no .parquet file{f' of the split {split}' if split else ''} in it")
    return found


def _rows(files: list[Path]) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingPackage(f"pyarrow is not installed; type: {install('data')}") from error
    number = 0
    for file in files:
        try:
            with ParquetFile(file) as table:
                for batch in table.iter_batches(BATCH_ROWS):
                    for value in batch.to_pylist():
                        number += 1
                        yield ForeignRow(number, value)
        except (ArrowException, OSError) as error:
            raise RecipeError(f"{file}: no readable Parquet file ({one_line(str(error), 120)})") from error
