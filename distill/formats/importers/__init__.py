"""Registry of importers; each yields parsed rows, or rejected ones with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

from distill.core import console, registry
from distill.errors import RecipeError, SeedsError, one_line
from distill.formats import containers, oasst_trees, schemas
from distill.formats.json_rows import ForeignRow, RejectedRow, Rows
from distill.formats.named_columns import HOW_TO_NAME, PEEKED, NamedColumns
from distill.formats.parsed_row import ParsedRow
from distill.formats.text_files import data_suffix
from distill.types import Pair, Session, Task

IMPORTERS = {
    "alpaca": "distill.formats.importers.json_files:alpaca",
    "csv": "distill.formats.importers.json_files:json",
    "datasets": "distill.formats.importers.tables:datasets",
    "distill": "distill.formats.importers.json_files:distill",
    "hub": "distill.formats.importers.tables:hub",
    "json": "distill.formats.importers.json_files:json",
    "lines": "distill.formats.importers.json_files:LinesImporter",
    "oasst": "distill.formats.importers.json_files:oasst",
    "openai": "distill.formats.importers.json_files:openai",
    "parquet": "distill.formats.importers.tables:parquet",
    "preference": "distill.formats.importers.json_files:preference",
    "prompt_response": "distill.formats.importers.json_files:prompt_response",
    "questions": "distill.formats.importers.json_files:questions",
    "self_instruct": "distill.formats.importers.json_files:self_instruct",
    "sharegpt": "distill.formats.importers.json_files:sharegpt",
    "text": "distill.formats.importers.json_files:text",
}
DATA_FILES = {".parquet": "parquet", ".jsonl": "hub", ".json": "hub", ".csv": "hub"}
"""Formats of folders, by the files in them."""
HUB_ID = re.compile(r"\A[A-Za-z0-9][\w.-]*/[\w.-]+\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """Location of a dataset."""

    path: str
    """A file, a folder, or a Hub id."""
    split: str | None = None
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    config: str | None = None
    """Part of a Hub dataset, such as a language."""

    @property
    def name(self) -> str:
        """Its name in a session's meta: the file's name without its folders, or the Hub id."""
        return self.path if HUB_ID.match(self.path) and not Path(self.path).exists() else Path(self.path).name


class Importer(Protocol):
    """A part that reads one format."""

    takes: frozenset[str]
    """Which of `split`, `revision` and `config` an address may have."""

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """The contents of every row. Raises `RecipeError` where nothing can be read."""


@dataclass(frozen=True, slots=True)
class RowImporter:
    """An importer that reads objects and then parses them."""

    rows: Callable[[Address], Rows]
    parse: Callable[[Rows], Iterator[ParsedRow | RejectedRow]]
    takes: frozenset[str] = frozenset()

    def read(self, address: Address) -> Iterator[ParsedRow | RejectedRow]:
        """The contents of every row."""
        return self.parse(self.rows(address))


def read(
    name: str, address: Address, *, columns: NamedColumns | None = None, allowed: Collection[str] = ()
) -> Iterator[ParsedRow | RejectedRow]:
    """The contents of every row at an address, by the importer of that name, or from `columns` of its rows.

    Raises `RecipeError`.
    """
    importer: Importer = registry.part(IMPORTERS, name, kind="format", allowed=allowed)()
    if columns is not None:
        if not isinstance(importer, RowImporter):
            raise RecipeError(f"{address.path}: the format {name} has no columns to name; leave them out")
        importer = replace(importer, parse=partial(columns.parse, place=address.path))
    for option in ("split", "revision", "config"):
        if getattr(address, option) is not None and option not in importer.takes:
            raise RecipeError(f"{address.path}: the format {name} has no {option}; leave it out")
    return importer.read(address)


def guess(path: str, columns: NamedColumns | None = None, *, as_tasks: bool = False) -> tuple[str, str]:
    """The format of the data at a path, and how it was recognised.

    Raises `RecipeError` for an unknown format, and for a file that lacks one of the `columns`; with `as_tasks`, its
    advice is for a place where columns cannot be named.
    """
    place = Path(path)
    if place.is_dir():
        return _guess_folder(place)
    if not place.exists():
        hub = "; if it is a dataset of the Hub, add --from hub" if HUB_ID.match(path) and not place.suffix else ""
        raise RecipeError(f"no file {path}; check the path{hub}")
    return _guess_file(place, columns, as_tasks=as_tasks)


def _guess_file(file: Path, columns: NamedColumns | None, *, as_tasks: bool) -> tuple[str, str]:
    kind = containers.kind_of(file)
    if kind == "table" and columns is None:
        return "parquet", "by its first bytes"
    if kind == "lines":
        return "lines", "no JSON in it"
    with closing(containers.rows(file)) as all_rows:
        peeked = list(islice(all_rows, PEEKED))
    rows = [row for row in peeked if isinstance(row, ForeignRow)]
    if columns is not None:
        columns.require(rows, file)
        return "parquet" if kind == "table" else kind, "by its contents"
    names = {name: row for row in rows if (name := schemas.name_of(row.value)) is not None}
    if names:
        keys = f"by the keys {', '.join(list(rows[0].value)[:4])}"
        return ("json", "rows of several formats") if len(names) > 1 else (next(iter(names)), keys)
    what, how = "nothing in it", f"expected {', '.join(IMPORTERS)}{HOW_TO_NAME}"
    if rows:
        heads = [one_line(str(key), 60) for key in rows[0].value]
        what = f"it has the keys {', '.join(heads[:6])}"
        if len(heads) > 1:
            named = f"--prompt {quote(heads[0])} --answer {quote(heads[1])}"
            how = f"name its columns, such as {named} (in a recipe `prompt:` and `answer:`), or its format: --from"
            if as_tasks:
                command = f"distill import {quote(str(file))} --prompt {quote(heads[0])} --as tasks --out tasks.jsonl"
                how = f"to make tasks of a column, type: {command}"
    elif peeked and isinstance(first := peeked[0], RejectedRow):
        what = f"line {first.line}: {first.reason}, {first.detail}"
    raise RecipeError(f"{file}: unknown format ({what}); {how}")


def _guess_folder(folder: Path) -> tuple[str, str]:
    for marker in ("dataset_info.json", "dataset_dict.json", "state.json"):
        if (folder / marker).is_file():
            return "datasets", f"by {marker} in it"
    if (folder / "README.md").is_file():
        return "hub", "by the card in it"
    if (folder / "run.json").is_file():
        raise RecipeError(f"{folder} is a run; give one of its files, such as {folder / 'kept.jsonl'}")
    suffixes = {data_suffix(file) for file in folder.rglob("*") if file.is_file()}
    for suffix, name in DATA_FILES.items():
        if suffix in suffixes:
            return name, f"by the {suffix} files in it"
    raise RecipeError(
        f"{folder}: a folder of no known format; expected a saved dataset, or .parquet, .jsonl, .json or .csv files"
    )


def known_shapes(rows: Rows) -> Iterator[ParsedRow | RejectedRow]:
    """The contents of a table's rows: messages of trees, or rows whose keys determine their shape."""
    peeked = list(islice(rows, PEEKED))
    first = next((row for row in peeked if isinstance(row, ForeignRow)), None)
    again = chain(peeked, rows)
    if first is not None and (schemas.name_of(first.value) == "oasst" or "parent_id" in first.value):
        return oasst_trees.threads(again)
    return schemas.parse(again)


class Names:
    """Assigns unique ids: the row's own, or one from its line; duplicates get a number."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def name(self, parsed: ParsedRow) -> str:
        """The id."""
        return self.unique(parsed.id if parsed.id is not None else f"line-{parsed.line:05}")

    def unique(self, id: str) -> str:
        """The id itself, or with a number where it is taken."""
        name = id
        while name in self._seen:
            self._seen[id] += 1
            name = f"{id}~{self._seen[id]}"
        self._seen[name] = 1
        return name


def session(parsed: ParsedRow, names: Names, provenance: Mapping[str, Any]) -> Session | RejectedRow:
    """The session of a row, with the chosen answer of a preference; a row without an answer is rejected."""
    if not parsed.is_answered:
        return RejectedRow(
            parsed.line, "no_answer", "no turn answers the question; --as tasks takes the question alone"
        )
    return Session(names.name(parsed), parsed.messages, _meta(parsed, provenance))


def pair(parsed: ParsedRow, names: Names, provenance: Mapping[str, Any]) -> Pair | RejectedRow:
    """The pair of a row; a row without a rejected answer is rejected."""
    if parsed.rejected is None:
        return RejectedRow(parsed.line, "no_pair", "no rejected answer; --as sessions takes rows of one answer")
    return Pair(names.name(parsed), parsed.messages, _meta(parsed, provenance), rejected=parsed.rejected)


def session_or_pair(parsed: ParsedRow, names: Names, provenance: Mapping[str, Any]) -> Session | Pair | RejectedRow:
    """The pair of a preference, the session of any other row."""
    return (session if parsed.rejected is None else pair)(parsed, names, provenance)


def task(parsed: ParsedRow, names: Names, provenance: Mapping[str, Any]) -> Task | RejectedRow | None:
    """The task of a row; `None` where the previous row has the same task."""
    if parsed.again:
        return None
    if not parsed.instruction.strip():
        return RejectedRow(parsed.line, "no_text", "no question in it")
    return Task(names.name(parsed), parsed.instruction, parsed.input, _meta(parsed, provenance))


def load_tasks(path: Path) -> list[Task]:
    """The tasks of a file of any format: JSON lines with `instruction` (and `id`, `input`, `meta`), a prompt per line …

    A task without an id is named after its line: `line-00001`. Unusable rows of foreign formats are skipped with a
    warning. Raises `SeedsError` with file and line for a malformed line of our own format or a duplicate id, and where
    there is no task.
    """
    try:
        name, _ = guess(str(path), as_tasks=True) if path.exists() else ("lines", "")
        rows = list(read(name, Address(str(path))))
    except RecipeError as error:
        raise SeedsError(f"cannot read the tasks: {error}") from error
    tasks = _own_tasks(rows, path) if name in ("distill", "lines") else _foreign_tasks(rows, path, name)
    if not tasks:
        raise SeedsError(f"{path} has no task; expected a prompt per line, or JSON lines with the key `instruction`")
    return tasks


def _own_tasks(rows: Sequence[ParsedRow | RejectedRow], path: Path) -> list[Task]:
    """The tasks of a file in our own format, unchanged."""
    first: dict[str, int] = {}
    tasks = []
    for row in rows:
        if isinstance(row, RejectedRow):
            raise SeedsError(f"{path}:{row.line}: {row.detail}")
        id = row.id if row.id is not None else f"line-{row.line:05}"
        if id in first:
            raise SeedsError(f"{path}:{row.line}: the id {id} is already that of {path}:{first[id]}; give each its own")
        first[id] = row.line
        tasks.append(Task(id, row.instruction, row.input, row.meta))
    return tasks


def _foreign_tasks(rows: Sequence[ParsedRow | RejectedRow], path: Path, name: str) -> list[Task]:
    names, provenance = Names(), {"source": path.name, "importer": name}
    results = [row if isinstance(row, RejectedRow) else task(row, names, provenance) for row in rows]
    rejected = [row for row in results if isinstance(row, RejectedRow)]
    if rejected:
        first = rejected[0]
        console.warn(
            f"{path}: {len(rejected)} of {len(rows)} rows are no task; the first, in line {first.line}: {first.detail}"
        )
    if columns := dict.fromkeys(name for row in rows if isinstance(row, ParsedRow) for name in row.ignored):
        console.warn(f"{path}: columns_ignored: {', '.join(columns)}")
    return [row for row in results if isinstance(row, Task)]


def _meta(parsed: ParsedRow, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a row; the row's own meta takes precedence."""
    meta: dict[str, Any] = {**provenance, "line": parsed.line}
    if parsed.id is not None:
        meta["original_id"] = parsed.id
    if parsed.repairs:
        meta["repairs"] = list(parsed.repairs)
    return {**meta, **parsed.meta}
