"""The `import` command: converts a file of another format to sessions or tasks."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast, get_args

from distill.core import console
from distill.core.files import make_parent
from distill.core.jsonl import write_rows
from distill.core.registry import suggest
from distill.errors import RecipeError, RunFolderError
from distill.formats import importers
from distill.formats.importers import Address
from distill.formats.named_columns import NamedColumns
from distill.formats.sources import (
    MOST_REJECTED,
    Build,
    Dataset,
    RowKind,
    SourceCounts,
    nothing_read,
    rows_of,
    splitter,
)
from distill.formats.text_files import from_windows
from distill.types import Pair, Session, Task

BUILDERS: Mapping[str | None, Build[Any]] = {
    None: importers.session_or_pair,
    "sessions": importers.session,
    "pairs": importers.pair,
    "tasks": importers.task,
}
"""By the kind of rows to write; without one, each row determines it."""


def import_file(
    dataset: Dataset, out: Path, *, kind: RowKind | None = None, seed: int = 7, allowed: Collection[str] = ()
) -> tuple[int, SourceCounts]:
    """Write a dataset's rows to `out` and its rejected rows beside it; returns their number and counts.

    By default, a preference becomes a pair and any other row a session. Both are written whole or not at all. Raises
    `RecipeError` where nothing can be read, `RunFolderError` where nothing can be written.
    """
    _require_writable(out, dataset.address)
    counts = SourceCounts()
    rows = rows_of(dataset, counts, seed, allowed, build=BUILDERS[kind])
    if (first := next(rows, None)) is None:
        raise RecipeError(nothing_read(dataset, counts, kind or "sessions"))
    make_parent(out)
    count = write_rows(out, _with_pairs_counted(chain([first], rows), counts))
    write_rows(rejected_path(out), counts.rejected)
    return count, counts


def _with_pairs_counted(rows: Iterable[Session | Pair | Task], counts: SourceCounts) -> Iterator[Session | Pair | Task]:
    for row in rows:
        counts.pairs += isinstance(row, Pair)
        yield row


def import_command(
    path: str,
    out: Path,
    *,
    format: str | None,
    columns: NamedColumns | None = None,
    kind: str | None,
    take: int | None,
    seed: int,
    tokenizer: str | None,
    max_tokens: int | None,
    split: str | None,
    revision: str | None,
    config: str | None = None,
    licence: str | None,
    allowed: Collection[str] = (),
) -> list[str]:
    """Import a file, guessing its format where none is given; returns the lines to report."""
    if kind not in BUILDERS:
        raise RecipeError(f'--as: unknown rows "{kind}"{suggest(str(kind), get_args(RowKind))}')
    if (tokenizer is None) != (max_tokens is None):
        raise RecipeError("--tokenizer and --max-tokens belong together: one counts the tokens that the other limits")
    if not Path(path).exists() and format not in (None, "hub"):
        raise RecipeError(f"no file {path}; check the path")
    with _seekable(path) as file:
        if format is None:
            format, why = importers.guess(file, columns)
            console.say(f"{path}: read as {format} ({why}); --from says otherwise")
        dataset = Dataset(
            format=format,
            address=Address(file, split, revision, config),
            columns=columns,
            licence=licence,
            take=take,
            splitter=splitter(tokenizer, max_tokens) if tokenizer is not None and max_tokens is not None else None,
        )
        count, tally = import_file(dataset, out, kind=cast("RowKind | None", kind), seed=seed, allowed=allowed)
    return [f"{out}: {_amounts(count, tally, kind)} of {tally.rows:,} rows", *_result_lines(tally, path, out)]


def _amounts(count: int, tally: SourceCounts, kind: str | None) -> str:
    """The number of rows written, by their kind."""
    others = count - tally.pairs
    amounts = {"pairs": tally.pairs, (kind if kind != "pairs" else None) or "sessions": others}
    return " and ".join(f"{number:,} {name}" for name, number in amounts.items() if number)


@contextmanager
def _seekable(path: str) -> Iterator[str]:
    """The path, or within the block that of a copy of a pipe's contents, since rows are read more than once."""
    if not Path(path).exists() or not stat.S_ISFIFO(Path(path).stat().st_mode):
        yield path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder, Path(path).name)
        with Path(path).open("rb") as pipe, copy.open("wb") as out:
            shutil.copyfileobj(pipe, out)
        yield str(copy)


def _result_lines(tally: SourceCounts, path: str, out: Path) -> list[str]:
    lines = []
    if tally.split:
        lines.append(f"{tally.split:,} conversations were split")
    if tally.over_long:
        lines.append(f"{tally.over_long:,} pairs are too long to split and stay whole, marked `over_long`")
    for what, counts in (
        ("repaired", tally.repairs),
        ("columns_ignored", tally.ignored),
        ("rejected", dict(tally.reasons.most_common())),
    ):
        if counts:
            lines.append(f"{what}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    if tally.reasons["not_utf8"]:
        lines.append(f"{path} is not UTF-8; {from_windows(path)}")
    first = f" (the first {MOST_REJECTED:,})" if tally.reasons.total() > MOST_REJECTED else ""
    return [*lines, f"see {rejected_path(out)}{first}"] if tally.rejected else lines


def rejected_path(out: Path) -> Path:
    """The file of rejected rows: `chats.rejected.jsonl` beside `chats.jsonl`."""
    return out.with_name(f"{out.stem if out.suffix == '.jsonl' else out.name}.rejected.jsonl")


def _require_writable(out: Path, address: Address) -> None:
    if out.is_dir():
        raise RunFolderError(f"cannot write {out}: it is a folder; give a file, such as {out / 'sessions.jsonl'}")
    if out.exists() and Path(address.path).exists() and out.samefile(address.path):
        raise RunFolderError(f"{out} is the file to read; give another --out")
