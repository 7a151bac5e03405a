"""A recipe's `sources`: existing datasets whose sessions are added to those of collect."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from distill.core import console
from distill.core.files import to_json
from distill.core.hashing import hash_share
from distill.core.jsonl import write_rows
from distill.errors import RecipeError, shorten
from distill.formats import importers
from distill.formats.importers import Address
from distill.formats.json_rows import RejectedRow
from distill.formats.named_columns import HOW_TO_NAME, NamedColumns
from distill.formats.parsed_row import ParsedRow
from distill.formats.turns import part_meta
from distill.models.pretrained import token_counter
from distill.types import Pair, Session, Task, pairs, spans

TURN_TOKENS = 6
"""Approximate tokens that a template adds per turn (FastChat, `split_long_conversation.py`)."""
REPORT_ROWS = 500
MOST_REJECTED = 100_000
"""Rejected rows of a source that are held in memory and written; the others are counted."""
MOST_COLUMNS = 50
"""Columns that are named where no schema uses them; the others are counted together."""
RowKind = Literal["sessions", "pairs", "tasks"]
CountTokens: TypeAlias = Callable[[str], int]
AnyRow = TypeVar("AnyRow", bound=Session | Pair | Task)
Build: TypeAlias = Callable[[ParsedRow, importers.Names, Mapping[str, Any]], AnyRow | RejectedRow | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitter:
    """How to split long conversations."""

    count: CountTokens
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset to import."""

    format: str
    address: Address
    columns: NamedColumns | None = None
    """Columns of question, answer and system message, where no known format has their names."""
    licence: str | None = None
    name: str = ""
    """Prefix of its sessions' ids, for one of several datasets."""
    take: int | None = None
    """Size of the sample; `None` takes all rows."""
    weight: float = 1.0
    """Copies of each session: 0.5 takes about half of them, 2 takes each twice."""
    splitter: Splitter | None = None


@dataclass(slots=True)
class SourceCounts:
    """Counts of a source's rows by outcome."""

    rows: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)
    """The first `MOST_REJECTED` of them."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Number of rejected rows by reason."""
    repairs: Counter[str] = field(default_factory=Counter)
    """Repairs of all rows read, including those outside the sample."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Rows read by column with a value that no schema uses."""
    pairs: int = 0
    """Pairs written."""
    split: int = 0
    """Conversations that were split."""
    over_long: int = 0
    """Sessions that are too long and cannot be split: a single question with its answer."""

    def reject(self, row: RejectedRow) -> None:
        """Count a rejected row."""
        self.reasons[row.reason] += 1
        if len(self.rejected) < MOST_REJECTED:
            self.rejected.append(row)

    def ignore(self, columns: Sequence[str]) -> None:
        """Count the unused columns of a row."""
        for column in (shorten(one, 60) for one in columns):
            is_named = column in self.ignored or len(self.ignored) < MOST_COLUMNS
            self.ignored[column if is_named else "others"] += 1


def nothing_read(dataset: Dataset, counts: SourceCounts, kind: RowKind) -> str:
    """Why a dataset has no usable row."""
    if not counts.rejected:
        return f"{dataset.address.path}: nothing in it; expected {kind} in the format {dataset.format}"
    first = counts.rejected[0]
    is_unnamed = dataset.columns is None or dataset.columns.answer is None
    hint = HOW_TO_NAME if is_unnamed and first.reason in ("no_answer", "not_text", "unknown_shape") else ""
    return (
        f"{dataset.address.path}: none of {counts.rows} rows is read as {dataset.format}; the first, in line"
        f" {first.line}: {first.reason} ({first.detail}){hint}"
    )


def ingest(
    folder: Path, *, sources: Sequence[Dataset], seed: int, allowed: Collection[str] = ()
) -> tuple[list[Session], dict[str, object]]:
    """The sessions of a recipe's sources, in order, and counts; writes rejected.jsonl.

    Every id starts with the name of its source, so that ids are unique. Raises `RecipeError` for a source that cannot
    be read or has no usable row.
    """
    imported: dict[str, list[Session]] = {}
    rejected: list[dict[str, object]] = []
    repairs, reasons = Counter[str](), Counter[str]()
    ignored: dict[str, list[str]] = {}
    for source in sources:
        counts = SourceCounts()
        imported[source.name] = [
            copy
            for one in sessions(source, counts, seed, allowed)
            for copy in _weighted(
                replace(one, id=f"{source.name}/{one.id}", meta={**one.meta, "imported": source.name}),
                source.weight,
                seed,
            )
        ]
        if not imported[source.name]:
            raise RecipeError(f"sources: {nothing_read(source, counts, 'sessions')}")
        if counts.rejected:
            first, by_reason = counts.rejected[0], counts.reasons.most_common()
            console.warn(
                f"{source.name}: {counts.reasons.total():,} of {counts.rows:,} rows cannot be read "
                f"({', '.join(f'{reason} {count:,}' for reason, count in by_reason)}), the first in line {first.line}: "
                f"{first.detail}; see rejected.jsonl"
            )
        rejected += [{"source": source.name, **to_json(row)} for row in counts.rejected]
        repairs += counts.repairs
        reasons += counts.reasons
        if counts.ignored:
            ignored[source.name] = list(counts.ignored)
            console.say(f"{source.name}: columns_ignored: {', '.join(counts.ignored)}")
    write_rows(folder / "rejected.jsonl", rejected)
    by_source = {name: len(rows) for name, rows in imported.items()}
    return [session for rows in imported.values() for session in rows], {
        "imported": sum(by_source.values()),
        "by_source": by_source,
        "import_rejected": reasons.total(),
        "import_reasons": dict(reasons.most_common()),
        "import_repairs": dict(repairs.most_common()),
        **({"columns_ignored": ignored} if ignored else {}),
    }


def sessions(dataset: Dataset, counts: SourceCounts, seed: int, allowed: Collection[str] = ()) -> Iterator[Session]:
    """The sessions of a recipe's dataset, in order; a preference is a `Pair`."""
    return rows_of(dataset, counts, seed, allowed, build=importers.session_or_pair)


def rows_of(
    dataset: Dataset, counts: SourceCounts, seed: int, allowed: Collection[str] = (), *, build: Build[Any]
) -> Iterator[Any]:
    """The rows of a dataset as `build` makes them, in order: sampled; sessions are then split, and pairs never."""
    names = importers.Names()
    for row in _sampled(_rows(dataset, build, names, counts, allowed), dataset.take, seed):
        if dataset.splitter is None or not isinstance(row, Session) or isinstance(row, Pair):
            yield row
            continue
        parts = split(row, dataset.splitter)
        counts.split += len(parts) > 1
        counts.over_long += sum(1 for part in parts if part.meta.get("over_long"))
        yield from parts if len(parts) == 1 else (replace(part, id=names.unique(part.id)) for part in parts)


def _rows(
    dataset: Dataset,
    build: Build[AnyRow],
    names: importers.Names,
    counts: SourceCounts,
    allowed: Collection[str],
) -> Iterator[AnyRow]:
    """The rows of a dataset as `build` makes them; rejected rows are added to the counts."""
    provenance = {"source": dataset.address.name, "importer": dataset.format}
    if dataset.licence is not None:
        provenance["licence"] = dataset.licence
    with console.progress(f"import {dataset.address.name}", unit="rows") as bar:
        for parsed in importers.read(dataset.format, dataset.address, columns=dataset.columns, allowed=allowed):
            counts.rows += 1
            if counts.rows % REPORT_ROWS == 0:
                bar.update(counts.rows, note=f"{counts.reasons.total():,} rejected" if counts.rejected else "")
            row: AnyRow | RejectedRow | None
            if isinstance(parsed, RejectedRow):
                row = parsed
            else:
                counts.repairs.update(parsed.repairs)
                row = build(parsed, names, provenance)
            if isinstance(row, RejectedRow):
                counts.reject(row)
            elif row is not None and not isinstance(parsed, RejectedRow):
                is_lost = parsed.rejected is not None and not isinstance(row, Pair)
                counts.ignore([*parsed.ignored, *(["rejected"] if is_lost else [])])
                yield row


def _sampled(rows: Iterator[AnyRow], take: int | None, seed: int) -> Iterator[AnyRow]:
    """The `take` rows with the smallest hashes of seed and id, in the order of the file; all rows for `None`.

    The choice depends on nothing else: a larger sample contains the smaller one, and new rows only displace others.
    Memory holds at most `take` rows.
    """
    if take is None:
        return rows
    sample = heapq.nsmallest(take, enumerate(rows), key=lambda item: (hash_share(f"{seed}:{item[1].id}"), item[0]))
    return (row for _, row in sorted(sample, key=lambda item: item[0]))


def _weighted(session: Session, weight: float, seed: int) -> Iterator[Session]:
    """Copies of a session by its weight; the fraction is a probability, drawn from a hash of seed and id."""
    times = int(weight) + (hash_share(f"{seed}:weight:{session.id}") < weight % 1)
    for number in range(1, times + 1):
        yield session if number == 1 else replace(session, id=f"{session.id}*{number}")


# Splitting


def split(session: Session, splitter: Splitter) -> list[Session]:
    """The session in parts of at most `max_tokens` tokens, cut before questions; each begins with the system turn.

    Packs whole pairs like FastChat's `split_long_conversation.py`, with its 6 tokens per turn for the template.
    FastChat drops a last pair that does not fit, and a pair that is too long by itself; here such a pair stays whole,
    with its tokens in `meta.over_long`.
    """
    system = [message for message in session.messages[:1] if message.role == "system"]
    turns = list(pairs(session.messages[len(system) :]))
    frame, *lengths = (
        sum(splitter.count(message.content) + TURN_TOKENS for message in messages) for messages in (system, *turns)
    )

    def tokens(start: int, stop: int) -> int:
        return frame + sum(lengths[start:stop])

    cuts = list(spans(len(turns), lambda start, stop: tokens(start, stop) <= splitter.max_tokens))
    places = list(accumulate(map(len, turns), initial=len(system)))
    parts = []
    for number, (start, stop) in enumerate(cuts, start=1):
        meta = part_meta(session, places[start], places[stop])
        if meta.get("truncated") and number < len(cuts):
            meta["truncated"] = False  # only the last part ends with the answer that was cut off
        if tokens(start, stop) > splitter.max_tokens:
            meta["over_long"] = tokens(start, stop)
        messages = (*system, *session.messages[places[start] : places[stop]])
        more = {"part": number, "parts": len(cuts)} if len(cuts) > 1 else {}
        parts.append(Session(f"{session.id}.{number}" if more else session.id, messages, {**meta, **more}))
    return parts


def splitter(tokenizer: str, max_tokens: int) -> Splitter:
    """A splitter that counts by the tokenizer of a model: `smollm2`, or a folder with a tokenizer.json.

    Raises `ModelError` where there is none, `MissingPackage`.
    """
    path = Path(tokenizer).expanduser()
    if not path.exists():
        from distill.models.loading import materialise

        path = materialise(tokenizer, say=console.say)
    return Splitter(count=token_counter(path), max_tokens=max_tokens)
