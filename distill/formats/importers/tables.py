"""Imports tables in one of the known schemas: saved datasets, Parquet files, datasets of the Hugging Face Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from distill.core import console
from distill.core.extras import install
from distill.errors import MissingPackage, RecipeError, one_line
from distill.formats.containers import rows
from distill.formats.importers import HUB_ID, Address, RowImporter, known_shapes
from distill.formats.json_rows import ForeignRow, Rows
from distill.formats.table_files import AT_ONCE, batch_values, bounded_rows, table_values
from distill.formats.text_files import data_suffix

READ_HERE = {
    "json": (".json", ".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
}
"""Files of the Hub that our own reader reads, by the library's name of their kind: it loses a bad row, not the set."""
_HUB_FAULTS = (OSError, ValueError, RuntimeError)
"""Of datasets, huggingface_hub and HTTP, also without a network."""


def _saved(address: Address) -> Rows:
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
    if isinstance(saved, DatasetDict):
        saved = saved[_split(address, list(saved))]
    elif address.split is not None:
        raise RecipeError(f"{address.path}: one dataset without splits; leave the split out")
    tables = saved.with_format("arrow").iter(AT_ONCE)
    values = chain.from_iterable(batch_values(batch) for table in tables for batch in table.to_batches())
    return bounded_rows(values, address.path)


def _split(address: Address, names: Sequence[str]) -> str:
    split = address.split or "train"
    if split not in names:
        raise RecipeError(
            f'{address.path}: no split "{split}"; give --split (in a recipe `split:`): {", ".join(names)}'
        )
    if address.split is None and (others := [name for name in names if name != split]):
        console.say(
            f"{address.name}: the split {split} is read, not {', '.join(others)} (--split, in a recipe `split:`)"
        )
    return split


def _hub(address: Address) -> Rows:
    """The rows of `owner/name`, or of a local folder laid out as on the Hub, without running code of the dataset.

    The split is `train` by default.
    """
    if not Path(address.path).is_dir() and not HUB_ID.match(address.path):
        raise RecipeError(f"{address.path!r} is no Hub id; expected owner/name, such as OpenAssistant/oasst1")
    try:
        import datasets
    except ImportError as error:
        raise MissingPackage(f"datasets is not installed; type: {install('data')}") from error
    datasets.disable_progress_bars()
    for name in ("datasets", "huggingface_hub", "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they log is raised too
    try:
        # datasets has had no `trust_remote_code` since 4.0: it refuses a dataset that comes with a script
        builder = datasets.load_dataset_builder(address.path, address.config, revision=address.revision)
    except _HUB_FAULTS as error:
        raise _config_fault(address) or _unreadable(address, error) from error
    kind, files = type(builder).__module__.rpartition(".")[2], builder.config.data_files or {}
    split = _split(address, [str(name) for name in files]) if files else address.split or "train"
    if files and all(data_suffix(file) in READ_HERE.get(kind, ()) for file in files[split]):
        return _numbered(files[split], address)
    return bounded_rows(_until_fault(_stream(builder, split), address), address.path)


def _stream(builder: Any, split: str) -> Iterator[Any]:
    yield from builder.as_streaming_dataset(split=split)


def _numbered(files: Sequence[str], address: Address) -> Rows:
    """The rows of all files, numbered from 1; a rejected one says where in its file it is."""
    numbers = count(1)
    for file in files:
        for row, number in zip(_until_fault(rows(file), address), numbers, strict=False):
            if isinstance(row, ForeignRow):
                yield replace(row, line=number)
            else:
                yield replace(row, line=number, detail=f"{Path(file).name}, line {row.line}: {row.detail}")


def _until_fault(values: Iterable[Any], address: Address) -> Iterator[Any]:
    try:
        yield from values
    except _HUB_FAULTS as error:
        raise _unreadable(address, error) from error


def _unreadable(address: Address, error: Exception) -> RecipeError:
    why = one_line(str(error), 160)
    return RecipeError(f"{address.path}: cannot be read from the Hub ({why}); check id, config, split and revision")


def _config_fault(address: Address) -> RecipeError | None:
    """The fault of a missing or wrong config; `None` where the config is not what is wrong."""
    import datasets

    try:
        names = datasets.get_dataset_config_names(address.path, revision=address.revision)
    except _HUB_FAULTS:
        return None
    if address.config in names or (address.config is None and len(names) == 1):
        return None
    what = f'no config "{address.config}"' if address.config else "it has several configs"
    return RecipeError(f"{address.path}: {what}; give --config (in a recipe `config:`): {', '.join(names)}")


def _parquet(address: Address) -> Rows:
    """The rows of a file, or of a folder of files in the order of their names; a split is the start of their names."""
    path = Path(address.path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    files = [file for file in files if address.split is None or file.name.startswith(address.split)]
    if not files:
        of_split = f" of the split {address.split}" if address.split else ""
        raise RecipeError(f"{path}: no .parquet file{of_split} in it")
    return bounded_rows(chain.from_iterable(map(table_values, files)), address.path)


datasets = partial(RowImporter, _saved, known_shapes, frozenset({"split"}))
hub = partial(RowImporter, _hub, known_shapes, frozenset({"split", "revision", "config"}))
parquet = partial(RowImporter, _parquet, known_shapes, frozenset({"split"}))
