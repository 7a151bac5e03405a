"""A recipe's `sources`: foreign data whose sessions join those of collect."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from distill.core import console
from distill.core.extras import install
from distill.core.hashing import hash_share
from distill.core.jsonl import write_rows
from distill.core.model_files import require_sound
from distill.errors import MissingPackage, RecipeError
from distill.formats import importers
from distill.formats.importers import Address
from distill.formats.json_rows import RejectedRow
from distill.formats.schemas import ParsedRow
from distill.types import Message, Session, Task, pairs

TURN_TOKENS = 6
"""What a template adds to a turn, about; FastChat's figure (`split_long_conversation.py`)."""
REPORT_ROWS = 500
Wanted = Literal["sessions", "tasks"]
CountTokens: TypeAlias = Callable[[str], int]
AnyRow = TypeVar("AnyRow", Session, Task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitter:
    """How to split long conversations."""

    count: CountTokens
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset to import."""

    format: str
    address: Address
    licence: str | None = None
    name: str = ""
    """Stands before the ids of its sessions, where it is one of several."""
    take: int | None = None
    """A sample of so many rows."""
    weight: float = 1.0
    """How often each session counts: 0.5 takes about half of them, 2 takes each twice."""
    splitter: Splitter | None = None


@dataclass(slots=True)
class SourceCounts:
    """Counts of a source's rows by outcome."""

    rows: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)
    """Of rows that were read, sampled or not."""
    split: int = 0
    """Conversations that were split."""
    over_long: int = 0
    """Sessions that are too long and could not be split: a single question with its answer."""

    def reasons(self) -> dict[str, int]:
        """Rejected rows by reason, the commonest first."""
        return dict(Counter(row.reason for row in self.rejected).most_common())

    def add(self, other: SourceCounts) -> None:
        """Count another source's rows with these."""
        self.rows += other.rows
        self.rejected += other.rejected
        self.repairs += other.repairs
        self.split += other.split
        self.over_long += other.over_long


def _nothing(source: Source, tally: SourceCounts, wanted: Wanted) -> str:
    if not tally.rejected:
        return f"{source.address.path}: nothing in it; expected {wanted} in the format {source.format}"
    first = tally.rejected[0]
    return (
        f"{source.address.path}: none of {tally.rows} rows is read as {source.format}; the first, in line {first.line}:"
        f" {first.reason} ({first.detail})"
    )


def ingest(
    folder: Path, *, sources: Sequence[Source], seed: int, allowed: Collection[str] = ()
) -> tuple[list[Session], dict[str, object]]:
    """The sessions of a recipe's sources, in their order, and counts; writes rejected.jsonl.

    Every id starts with its source's name, so that no two are the same. Raises `RecipeError` for a source that cannot
    be read, or of which no row can be used.
    """
    found: list[Session] = []
    tally, rejected, by_source = SourceCounts(), [], {}
    for source in sources:
        own = SourceCounts()
        taken = [
            copy
            for one in sessions(source, own, seed, allowed)
            for copy in _weighted(_named(one, source.name), source.weight, seed)
        ]
        if not taken:
            raise RecipeError(f"sources: {_nothing(source, own, 'sessions')}")
        found += taken
        by_source[source.name] = len(taken)
        rejected += [{"source": source.name, **_plain(row)} for row in own.rejected]
        tally.add(own)
    write_rows(folder / "rejected.jsonl", rejected)
    counts = {
        "imported": len(found),
        "by_source": by_source,
        "import_rejected": len(rejected),
        "import_reasons": tally.reasons(),
    }
    return found, {**counts, "import_repairs": dict(tally.repairs.most_common())}


def _named(session: Session, name: str) -> Session:
    return replace(session, id=f"{name}/{session.id}", meta={**session.meta, "imported": name})


def _plain(row: RejectedRow) -> dict[str, object]:
    return {"line": row.line, "reason": row.reason, "detail": row.detail}


def write(folder: Path, sessions: Sequence[Session]) -> None:
    """sessions.jsonl and failures.jsonl of a run that collects nothing itself."""
    write_rows(folder / "sessions.jsonl", sessions)
    write_rows(folder / "failures.jsonl", [])


def sessions(source: Source, tally: SourceCounts, seed: int, allowed: Collection[str] = ()) -> Iterator[Session]:
    """The sessions of a source, in its order: sampled, then split."""
    names, provenance = importers.Names(), _provenance(source)
    found = (importers.session(parsed, names, provenance) for parsed in _parsed(source, tally, allowed))
    for one in _sampled(_accepted(found, tally), source.take, seed):
        parts = list(_split(one, source.splitter, tally))
        yield from parts if len(parts) == 1 else (replace(part, id=names.unique(part.id)) for part in parts)


def tasks(source: Source, tally: SourceCounts, seed: int, allowed: Collection[str] = ()) -> Iterator[Task]:
    """The tasks of a source, in its order."""
    names, provenance = importers.Names(), _provenance(source)
    found = (importers.task(parsed, names, provenance) for parsed in _parsed(source, tally, allowed))
    yield from _sampled(_accepted(found, tally), source.take, seed)


def _provenance(source: Source) -> dict[str, str]:
    licence = {} if source.licence is None else {"licence": source.licence}
    return {"source": source.address.name, "importer": source.format, **licence}


def _parsed(source: Source, tally: SourceCounts, allowed: Collection[str]) -> Iterator[ParsedRow]:
    """What the rows say; rejected ones go to the tally."""
    with console.progress(f"import {source.address.name}", unit="rows") as bar:
        for found in importers.read(source.format, source.address, allowed=allowed):
            tally.rows += 1
            if tally.rows % REPORT_ROWS == 0:
                bar.update(tally.rows, note=f"{len(tally.rejected):,} rejected" if tally.rejected else "")
            if isinstance(found, RejectedRow):
                tally.rejected.append(found)
            else:
                tally.repairs.update(found.repairs)
                yield found


def _accepted(found: Iterable[AnyRow | RejectedRow | None], tally: SourceCounts) -> Iterator[AnyRow]:
    for row in found:
        if isinstance(row, RejectedRow):
            tally.rejected.append(row)
        elif row is not None:
            yield row


def _sampled(found: Iterator[AnyRow], take: int | None, seed: int) -> Iterator[AnyRow]:
    """`take` rows, those whose hash of seed and id is smallest, in the order of the file; all of them for `None`.

    The choice depends on nothing else: a larger sample holds the smaller one, and more rows shift none of the others
    but those they displace. No more than `take` rows are held.
    """
    if take is None:
        yield from found
        return
    numbered = enumerate(found)
    chosen = heapq.nsmallest(take, numbered, key=lambda item: (hash_share(f"{seed}:{item[1].id}"), item[0]))
    for _, row in sorted(chosen, key=lambda item: item[0]):
        yield row


def _weighted(session: Session, weight: float, seed: int) -> Iterator[Session]:
    """The session as often as its weight says; the fraction is a chance, by a hash of seed and id."""
    times = int(weight) + (hash_share(f"{seed}:weight:{session.id}") < weight % 1)
    for number in range(1, times + 1):
        yield session if number == 1 else replace(session, id=f"{session.id}*{number}")


# Splitting


def _split(session: Session, splitter: Splitter | None, tally: SourceCounts) -> Iterator[Session]:
    parts = [session] if splitter is None else split(session, splitter)
    tally.split += len(parts) > 1
    tally.over_long += sum(1 for part in parts if part.meta.get("over_long"))
    yield from parts


def split(session: Session, splitter: Splitter) -> list[Session]:
    """The session in parts of at most `max_tokens` tokens, cut before questions; each has the system turn in front.

    Packs whole pairs as FastChat's `split_long_conversation.py` does, with its 6 tokens per turn for the template, but
    loses nothing: there, a last pair that does not fit is dropped, and so is a pair that is too long alone. Here such
    a pair stays whole, with its tokens in `meta.over_long`.
    """
    system = [message for message in session.messages[:1] if message.role == "system"]
    frame = sum(_tokens(message, splitter) for message in system)
    parts: list[tuple[list[Message], int]] = []
    for pair in pairs(session.messages[len(system) :]):
        tokens = sum(_tokens(message, splitter) for message in pair)
        if parts and parts[-1][1] + tokens <= splitter.max_tokens:
            parts[-1] = ([*parts[-1][0], *pair], parts[-1][1] + tokens)
        else:
            parts.append(([*system, *pair], frame + tokens))
    return [_part(session, parts, number, splitter) for number in range(1, len(parts) + 1)]


def _part(session: Session, parts: Sequence[tuple[list[Message], int]], number: int, splitter: Splitter) -> Session:
    messages, tokens = parts[number - 1]
    meta = dict(session.meta)
    if meta.get("truncated") and number < len(parts):
        meta["truncated"] = False  # what was cut off is the end of the last part
    if tokens > splitter.max_tokens:
        meta["over_long"] = tokens
    if len(parts) == 1:
        return replace(session, meta=meta)
    return Session(f"{session.id}.{number}", tuple(messages), {**meta, "part": number, "parts": len(parts)})


def _tokens(message: Message, splitter: Splitter) -> int:
    return splitter.count(message.content) + TURN_TOKENS


def splitter(tokenizer: str, max_tokens: int) -> Splitter:
    """A splitter that counts by a model's tokenizer: `smollm2`, or a folder with a tokenizer.json.

    Raises `RecipeError` for a folder without one, `MissingPackage`, `ModelError`.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingPackage(f"splitting needs tokenizers; type: {install('train')}") from error
    path = _tokenizer_file(tokenizer)
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise RecipeError(
            f"{path}: no tokenizer ({str(error)[:100]}); expected a Hugging Face tokenizer.json"
        ) from error
    loaded.no_truncation()
    return Splitter(count=lambda text: len(loaded.encode(text, add_special_tokens=False).ids), max_tokens=max_tokens)


def _tokenizer_file(tokenizer: str) -> Path:
    folder = Path(tokenizer).expanduser()
    if not folder.exists():
        from distill.models.loading import materialise

        folder = materialise(tokenizer, say=console.say)
    path = folder if folder.is_file() else folder / "tokenizer.json"
    if folder.is_dir():
        require_sound(folder)
    if not path.is_file():
        raise RecipeError(f"{folder} has no tokenizer.json; expected a model's folder, or smollm2")
    return path
