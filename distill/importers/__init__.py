"""Readers of data that others made: each yields what every row says, or why it cannot be used."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from distill import records, shapes, shelf, trees
from distill.errors import RecipeError
from distill.records import Rejected, Row, Rows
from distill.shapes import Parsed
from distill.types import Session, Task

IMPORTERS = {
    "alpaca": "distill.importers.alpaca:Alpaca",
    "datasets": "distill.importers.datasets:Datasets",
    "distill": "distill.importers.distill:Distill",
    "hub": "distill.importers.hub:Hub",
    "lines": "distill.importers.lines:Lines",
    "oasst": "distill.importers.oasst:Oasst",
    "openai": "distill.importers.openai:OpenAI",
    "parquet": "distill.importers.parquet:Parquet",
    "prompt_response": "distill.importers.prompt_response:PromptResponse",
    "questions": "distill.importers.questions:Questions",
    "self_instruct": "distill.importers.self_instruct:SelfInstructSeeds",
    "sharegpt": "distill.importers.sharegpt:ShareGPT",
}
PEEKED = 20
"""So many rows are looked at to tell a file's format."""
HUB_ID = re.compile(r"\A[A-Za-z0-9][\w.-]*/[\w.-]+\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """Where data is."""

    path: str
    """A file, a folder, or a Hub id."""
    split: str | None = None
    revision: str | None = None
    """Of a Hub id: a branch, a tag or a commit."""

    @property
    def name(self) -> str:
        """What a session's meta calls it: the file's name without its folders, or the Hub id."""
        return self.path if HUB_ID.match(self.path) and not Path(self.path).exists() else Path(self.path).name


class Importer(Protocol):
    """A part that reads one format."""

    takes: frozenset[str]
    """Which of `split` and `revision` an address may have."""

    def read(self, address: Address) -> Iterator[Parsed | Rejected]:
        """What every row says. Raises `RecipeError` for what cannot be read at all."""


def read(name: str, address: Address, *, allowed: Collection[str] = ()) -> Iterator[Parsed | Rejected]:
    """What every row at an address says, by the importer of that name. Raises `RecipeError`."""
    importer: Importer = shelf.part(IMPORTERS, name, kind="format", allowed=allowed)()
    for option in ("split", "revision"):
        if getattr(address, option) is not None and option not in importer.takes:
            raise RecipeError(f"{address.path}: the format {name} has no {option}; leave it out")
    return importer.read(address)


def guess(path: str) -> tuple[str, str]:
    """The format of what is at a path, and what tells so. Raises `RecipeError` where nothing does."""
    place = Path(path)
    if place.is_dir():
        return _guess_folder(place)
    if not place.exists() and HUB_ID.match(path):
        return "hub", "there is no such file, and it reads like a Hub id"
    if place.suffix == ".parquet":
        return "parquet", "by its name"
    rows = [row for row in islice(records.json_rows(place), PEEKED) if isinstance(row, Row)]
    for row in rows:
        if (name := shapes.name_of(row.value)) is not None:
            return name, f"by the keys {', '.join(list(row.value)[:4])}"
    if not rows and place.suffix not in (".json", ".jsonl"):
        return "lines", "no JSON in it"
    keys = f"the keys {', '.join(list(rows[0].value)[:6])} tell of none" if rows else "no JSON object in it"
    raise RecipeError(f"{path}: its format is not known: {keys}; expected {', '.join(IMPORTERS)}")


def _guess_folder(folder: Path) -> tuple[str, str]:
    for marker in ("dataset_info.json", "dataset_dict.json", "state.json"):
        if (folder / marker).is_file():
            return "datasets", f"by {marker} in it"
    if any(folder.rglob("*.parquet")):
        return "parquet", "by the .parquet files in it"
    raise RecipeError(f"{folder}: a folder of no known format; expected a saved dataset, or .parquet files")


def known_shapes(rows: Rows) -> Iterator[Parsed | Rejected]:
    """What the rows of a table say: trees of messages, or rows each of a shape that its keys tell."""
    peeked = list(islice(rows, PEEKED))
    first = next((row for row in peeked if isinstance(row, Row)), None)
    again = chain(peeked, rows)
    if first is not None and (shapes.name_of(first.value) == "oasst" or "parent_id" in first.value):
        return trees.threads(again)
    return shapes.parse(again)


class Names:
    """Gives every row an id of its own: that of its row, or one by its line; an id seen before gets a number."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def name(self, parsed: Parsed) -> str:
        """The id."""
        wanted = parsed.id if parsed.id is not None else f"line-{parsed.line:05}"
        name = wanted
        while name in self._seen:
            self._seen[wanted] += 1
            name = f"{wanted}~{self._seen[wanted]}"
        self._seen[name] = 1
        return name


def session(parsed: Parsed, names: Names, provenance: Mapping[str, Any]) -> Session | Rejected:
    """The session that a row holds; rejected where nothing is answered."""
    if not parsed.is_answered:
        return Rejected(parsed.line, "no_answer", "no turn answers the question; --as tasks takes the question alone")
    return Session(names.name(parsed), parsed.messages, _meta(parsed, provenance))


def task(parsed: Parsed, names: Names, provenance: Mapping[str, Any]) -> Task | Rejected | None:
    """The task that a row holds; `None` where the row before had it already."""
    if parsed.again:
        return None
    if not parsed.instruction.strip():
        return Rejected(parsed.line, "no_text", "no question in it")
    return Task(names.name(parsed), parsed.instruction, parsed.input, _meta(parsed, provenance))


def _meta(parsed: Parsed, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Where it is from; what the row itself says of that goes first."""
    found: dict[str, Any] = {**provenance, "line": parsed.line}
    if parsed.id is not None:
        found["original_id"] = parsed.id
    if parsed.repairs:
        found["repairs"] = list(parsed.repairs)
    return {**found, **parsed.meta}
