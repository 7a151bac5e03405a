"""Imports tables in one of the known schemas: saved datasets, Parquet files, datasets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

from distill.core.bounded_memory import bounded_memory
from distill.core.extras import install
from distill.core.registry import suggest
from distill.errors import MissingPackage, RecipeError, one_line
from distill.formats.importers import HUB_ID, Address, RowImporter, known_shapes
from distill.formats.json_rows import ForeignRow, Rows, storable

BATCH_ROWS = 1024
BATCH_BYTES = 32 * 2**20
"""Size of a batch according to the file's metadata, which do not count repeated references to one value."""
AT_ONCE = 64
"""Rows that are read between two looks at the memory."""
MOST_BYTES = 400_000_000
"""Memory that reading the next rows of a small file may take."""
MOST_RATIO = 1000
"""Largest size of all rows over `MOST_BYTES`, in multiples of the size of their file."""


def _importer(values: Callable[[Address], Iterator[Any]], *takes: str) -> partial[RowImporter]:
    """An importer of values in known shapes; the line of a row is its number."""

    def rows(address: Address) -> Rows:
        source, numbers, most = values(address), count(1), _most_bytes(Path(address.path))
        while True:
            try:
                with bounded_memory(most):
                    group = [storable(value) for value in islice(source, AT_ONCE)]
            except MemoryError as error:
                size = f"{most // 10**6:,} MB"
                raise RecipeError(
                    f"{address.path}: its next rows take over {size} of memory; write long texts as JSON lines"
                ) from error
            if not group:
                return
            for value in group:
                yield ForeignRow(next(numbers), value)

    return partial(RowImporter, rows, known_shapes, frozenset(takes))


def _most_bytes(path: Path) -> int:
    """Memory that reading the next rows may take; a page of a large file may be large, too.

    A table of a kilobyte can stand for gigabytes: a long value, and many references to it.
    """
    if not path.exists():
        return 10 * MOST_BYTES  # of the Hub, where sizes are unknown
    return MOST_BYTES + 8 * sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _saved(address: Address) -> Iterator[Any]:
    """The rows of a folder written by `save_to_disk`: one dataset, or a split of several (by default `train`)."""
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
    """The rows of `owner/name`, or of a local folder laid out as on the Hub, without running code of the dataset.

    The split is `train` by default.
    """
    if not Path(address.path).is_dir() and not HUB_ID.match(address.path):
        raise RecipeError(f"{address.path!r} is no Hub id; expected owner/name, such as OpenAssistant/oasst1")
    try:
        import datasets
    except ImportError as error:
        raise MissingPackage(f"datasets is not installed; type: {install('data')}") from error
    try:
        # datasets has had no `trust_remote_code` since 4.0: it refuses a dataset that comes with a script
        yield from datasets.load_dataset(
            address.path, split=address.split or "train", revision=address.revision, streaming=True
        )
    except (OSError, ValueError, RuntimeError) as error:  # of datasets, huggingface_hub and HTTP, also without network
        why = one_line(str(error), 160)
        raise RecipeError(
            f"{address.path}: cannot be read from the Hub ({why}); check id, split and revision"
        ) from error


def _parquet(address: Address) -> Iterator[Any]:
    """The rows of a file, or of a folder of files in the order of their names; a split is the start of their names."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingPackage(f"pyarrow is not installed; type: {install('data')}") from error
    path = Path(address.path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    files = [file for file in files if address.split is None or file.name.startswith(address.split)]
    if not files:
        of_split = f" of the split {address.split}" if address.split else ""
        raise RecipeError(f"{path}: no .parquet file{of_split} in it")
    for file in files:
        try:
            with ParquetFile(file) as table:
                groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
                row_bytes = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
                left = max(MOST_BYTES, MOST_RATIO * file.stat().st_size)
                for batch in table.iter_batches(max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))):
                    rows = batch.to_pylist()
                    left -= sum(len(repr(row)) for row in rows)
                    if left < 0:
                        raise RecipeError(f"{file}: its rows are over {MOST_RATIO:,} times its size; is it damaged?")
                    yield from rows
        except MemoryError:
            raise
        except (ArrowException, OSError) as error:
            raise RecipeError(f"{file}: no readable Parquet file ({one_line(str(error), 120)})") from error


datasets = _importer(_saved, "split")
hub = _importer(_streamed, "split", "revision")
parquet = _importer(_parquet, "split")
