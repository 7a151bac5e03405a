"""Streams the rows of Parquet and Arrow files within a bound on memory; a cell that cannot be read costs its row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from distill.core.bounded_memory import bounded_memory
from distill.core.extras import install
from distill.core.json_values import storable
from distill.errors import MissingPackage, RecipeError, one_line
from distill.formats.json_rows import ForeignRow, RejectedRow, Rows
from distill.formats.text_files import Place, open_bytes

BATCH_ROWS = 1024
BATCH_BYTES = 32 * 2**20
"""Size of a batch according to the file's metadata, which do not count repeated references to one value."""
AT_ONCE = 64
"""Rows read under one bound on memory."""
MOST_BYTES = 280_000_000
"""Memory that reading the next rows of a small file may take."""
MOST_RATIO = 1000
"""Largest size of all rows over `MOST_BYTES`, in multiples of the size of their file."""


class FaultyCell(ValueError):
    """Stands in place of a row that has a cell which cannot be read."""


def bounded_rows(values: Iterator[Any], place: Place) -> Rows:
    """Rows of values that a library reads, as JSON; the line of a row is its number. Raises `RecipeError`."""
    numbers, most = count(1), _most_bytes(Path(place))
    while True:
        try:
            with bounded_memory(most):
                group = [storable(each) if isinstance(each, dict) else each for each in islice(values, AT_ONCE)]
        except (MemoryError, SystemError) as error:  # the latter from C, where an allocation fails
            size = f"{most // 10**6:,} MB"
            raise RecipeError(
                f"{place}: its next rows take over {size} of memory; write long texts as JSON lines"
            ) from error
        if not group:
            return
        for line, value in zip(numbers, group, strict=False):
            yield ForeignRow(line, value) if isinstance(value, dict) else RejectedRow(line, "bad_cell", str(value))


def _most_bytes(path: Path) -> int:
    """Memory that reading the next rows may take; it grows with the file, whose pages may be large.

    A table of a kilobyte can unpack to gigabytes: one long value with many references to it.
    """
    if not path.exists():
        return 10 * MOST_BYTES  # of the Hub, where sizes are unknown
    return MOST_BYTES + 8 * sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def table_rows(place: Place) -> Rows:
    """The rows of a Parquet file, or of an Arrow file or stream. Raises `RecipeError`, `MissingPackage`."""
    return bounded_rows(table_values(place), place)


def table_values(place: Place) -> Iterator[Any]:
    """The rows of a Parquet or Arrow file as Python values, or faults."""
    try:
        import pyarrow.parquet  # noqa: F401 - here, before memory is bounded
    except ImportError as error:
        raise MissingPackage(f"pyarrow is not installed; type: {install('data')}") from error
    return _values(place)


def _values(place: Place) -> Iterator[Any]:
    from pyarrow import ArrowException

    try:
        with open_bytes(place) as file:
            size = file.seek(0, 2)
            left = max(MOST_BYTES, MOST_RATIO * size)
            for batch in _batches(file):
                rows = list(batch_values(batch))
                left -= sum(len(repr(row)) for row in rows)
                if left < 0:
                    raise RecipeError(f"{place}: its rows are over {MOST_RATIO:,} times its size; is it damaged?")
                yield from rows
    except MemoryError:
        raise
    except (ArrowException, OSError) as error:
        raise RecipeError(f"{place}: no readable Parquet or Arrow file ({one_line(str(error), 120)})") from error


def _batches(file: Any) -> Iterator[Any]:
    """Pieces of the table, each small."""
    from pyarrow import ipc
    from pyarrow.parquet import ParquetFile

    file.seek(0)
    magic = file.peek(4)[:4]
    if magic == b"PAR1":
        with ParquetFile(file) as table:
            groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
            row_bytes = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
            yield from table.iter_batches(max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes))))
        return
    reader = ipc.open_file(file) if magic == b"ARRO" else ipc.open_stream(file)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if magic == b"ARRO" else iter(reader)
    for batch in batches:
        step = max(1, min(BATCH_ROWS, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
        yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))


def batch_values(batch: Any) -> Iterator[Any]:
    """The rows of a batch as Python values; where one cannot be, its cells as text, else a `FaultyCell`."""
    from pyarrow import ArrowException

    try:
        yield from batch.to_pylist()
    except MemoryError:
        raise
    except (ArrowException, ValueError, OverflowError):
        for number in range(batch.num_rows):
            try:
                yield {
                    name: _cell(name, column[number])
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
            except FaultyCell as fault:
                yield fault


def _cell(name: str, scalar: Any) -> Any:
    from pyarrow import ArrowException, string

    ways: list[Callable[[], Any]] = [scalar.as_py, lambda: scalar.cast(string()).as_py()]
    fault = ""
    for way in ways:
        try:
            return way()
        except (ArrowException, ValueError, OverflowError) as error:
            fault = fault or str(error)
    raise FaultyCell(f"`{name}`: {one_line(fault, 120)}")
