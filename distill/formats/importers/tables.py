"""Imports tables in one of the known schemas: saved datasets, Parquet files, datasets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.core.extras import install
from distill.core.registry import suggest
from distill.errors import MissingPackage, RecipeError, one_line
from distill.formats.importers import HUB_ID, Address, known_shapes
from distill.formats.json_rows import ForeignRow, RejectedRow
from distill.formats.schemas import ParsedRow

BATCH_ROWS = 1024


class DatasetsImporter:
    """A folder written by `save_to_disk`: one dataset, or a split of several (`train` where it is left out)."""

    takes: frozenset[str] = frozenset({"split"})

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """The contents of every row."""
        return _numbered(_saved(address))


class HubImporter:
    """`owner/name`, or a local folder laid out as one on the Hub; `split` is `train` where it is left out."""

    takes: frozenset[str] = frozenset({"split", "revision"})

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """The contents of every row. Runs no code of the dataset."""
        if not Path(address.path).is_dir() and not HUB_ID.match(address.path):
            raise RecipeError(f"{address.path!r} is no Hub id; expected owner/name, such as OpenAssistant/oasst1")
        return _numbered(_streamed(address))


class ParquetImporter:
    """A file, or a folder of them in the order of their names; `split` picks those whose name starts with it."""

    takes: frozenset[str] = frozenset({"split"})

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """The contents of every row; its line is its number over all files."""
        path = Path(address.path)
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        files = [file for file in files if address.split is None or file.name.startswith(address.split)]
        if not files:
            of_split = f" of the split {address.split}" if address.split else ""
            raise RecipeError(f"{path}: no .parquet file{of_split} in it")
        return _numbered(value for file in files for value in _parquet(file))


def _numbered(values: Iterator[Any]) -> Iterator[ParsedRow | RejectedRow]:
    return known_shapes(ForeignRow(number, value) for number, value in enumerate(values, start=1))


def _saved(address: Address) -> Iterator[Any]:
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise MissingPackage(f"datasets is not installed; type: {install('data')}") from error
    try:
        saved = load_from_disk(address.path)
    except (OSError, ValueError, KeyError) as error:
        why = one_line(str(error), 120)
        raise RecipeError(f"{address.path}: no folder that `save_to_disk` wrote ({why})") from error
    if not isinstance(saved, DatasetDict):
        if address.split is not None:
            raise RecipeError(f"{address.path}: one dataset without splits; leave the split out")
        return iter(saved)
    split = address.split or "train"
    if split not in saved:
        raise RecipeError(f'{address.path}: no split "{split}"{suggest(split, list(saved))}')
    return iter(saved[split])


def _streamed(address: Address) -> Iterator[Any]:
    try:
        import datasets
    except ImportError as error:
        raise MissingPackage(f"datasets is not installed; type: {install('data')}") from error
    try:
        # datasets has had no `trust_remote_code` since 4.0: it refuses a dataset that comes with a script
        yield from datasets.load_dataset(
            address.path, split=address.split or "train", revision=address.revision, streaming=True
        )
    except (OSError, ValueError, RuntimeError) as error:  # of datasets, huggingface_hub and HTTP, no network among them
        why = one_line(str(error), 160)
        raise RecipeError(
            f"{address.path}: cannot be read from the Hub ({why}); check id, split and revision"
        ) from error


def _parquet(file: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingPackage(f"pyarrow is not installed; type: {install('data')}") from error
    try:
        with ParquetFile(file) as table:
            for batch in table.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise RecipeError(f"{file}: no readable Parquet file ({one_line(str(error), 120)})") from error
