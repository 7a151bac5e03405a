"""Pages of a run's JSONL files, and a search through them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from distill.core.redaction import strike
from distill.errors import DistillError, visible
from distill.ui.lines import BLOCK_BYTES, LONGEST_LINE, Line, LineIndex, lines_from

PAGE_ROWS = 50
SEARCH_SECONDS = 0.4
"""Time of one step of a search; the page asks for the next step."""
COUNT_SECONDS = 0.1
SHOWN_CHARACTERS = 240
"""Of a prompt and of an answer in the list."""
FACET_ROWS = 1_000
"""First rows of a file that its filters are made from."""


@dataclass(frozen=True)
class Query:
    """What a row must have; empty fields ask for nothing."""

    text: str = ""
    """Found in any text of the row, whatever the case."""
    verdict: str = ""
    """`rule/reason` of a verdict that drops, or of a refusal."""
    label: str = ""
    shortest: int = 0
    """Characters of the answer, or of the prompt where there is none."""
    longest: int | None = None

    @cached_property
    def _needles(self) -> tuple[list[bytes], list[str]]:
        """What the JSON of a fitting row holds: characters of ASCII that JSON never escapes in lower case, the rest."""
        wanted = list(filter(None, (self.text, self.verdict.rpartition("/")[2], self.label)))
        plain = [one for one in wanted if one.isascii() and one.isprintable() and not set(one) & set('"\\/')]
        others = [json.dumps(one, ensure_ascii=False)[1:-1].casefold() for one in wanted if one not in plain]
        return [one.lower().encode() for one in plain], others

    def may_be_in(self, data: bytes) -> bool:
        """Whether a row of these bytes may fit; far quicker than reading them."""
        plain, others = self._needles
        lower = data.lower() if plain else b""
        if not all(needle in lower for needle in plain):
            return False
        folded = data.decode("utf-8", "replace").casefold() if others else ""
        return all(needle in folded for needle in others) or "\\u" in folded or "\\/" in folded

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether the row fits."""
        if self.verdict and self.verdict not in objections(row):
            return False
        if self.label and self.label not in labels(row):
            return False
        if self.shortest or self.longest is not None:
            size = length(row)
            if size < self.shortest or (self.longest is not None and size > self.longest):
                return False
        wanted = self.text.casefold()
        return not wanted or any(wanted in text.casefold() for text in _texts(row))


def read(line: Line) -> dict[str, Any]:
    """The row of a line. Raises `DistillError` with the reason why it is none."""
    if len(line.data) >= LONGEST_LINE:
        raise DistillError(f"a line of over {LONGEST_LINE >> 20} MiB")
    try:
        row = json.loads(line.data)
    except (ValueError, RecursionError) as error:
        raise DistillError("not JSON") from error
    if not isinstance(row, dict):
        raise DistillError(f"{type(row).__name__}, expected an object")
    return row


def page(index: LineIndex, path: Path, first: int) -> dict[str, Any]:
    """The rows from number `first` on, and how many there are as far as counted."""
    at = index.offset(first)
    with path.open("rb") as file:
        rows = [summary(line) | {"number": first + n} for n, line in enumerate(islice(lines_from(file, at), PAGE_ROWS))]
    total, is_counted = index.count(COUNT_SECONDS)
    return {"rows": rows, "total": total, "is_counted": is_counted}


def search(path: Path, query: Query, at: int) -> dict[str, Any]:
    """Rows that fit from a line's offset on, for `SEARCH_SECONDS`; `next` is where to go on, none at the end."""
    deadline, rows = time.monotonic() + SEARCH_SECONDS, list[dict[str, Any]]()
    with path.open("rb") as file:
        size = path.stat().st_size
        for line, row in fitting(file, query, at):
            at = line.end
            if row is not None:
                rows.append(summary(line))
            if len(rows) >= PAGE_ROWS or time.monotonic() > deadline:
                return {"rows": rows, "next": at if at < size else None, "share": at / max(size, 1)}
    return {"rows": rows, "next": None, "share": 1.0}


def fitting(file: Any, query: Query, at: int) -> Iterator[tuple[Line, dict[str, Any] | None]]:
    """The rows that fit; and, without a row, the end of each block, so that a caller can look at the time."""
    file.seek(at)
    while block := file.read(BLOCK_BYTES):
        while block[-1:] != b"\n" and (rest := file.readline(LONGEST_LINE)):
            block += rest
        end = at + len(block)
        if query.may_be_in(block):
            for data in BytesIO(block):
                line = Line(at, data.rstrip(b"\r\n"), at + len(data), data.endswith(b"\n"))
                at = line.end
                if (row := _row(line, query)) is not None:
                    yield line, row
        at = end
        yield Line(at, b"", at, True), None


def _row(line: Line, query: Query) -> dict[str, Any] | None:
    if len(line.data) < query.shortest or not query.may_be_in(line.data):
        return None
    try:
        row = read(line)
        return row if query.fits(row) else None
    except (DistillError, RecursionError):
        return None


def facets(path: Path, counts: Mapping[str, Any]) -> dict[str, list[str]]:
    """Verdicts and labels to filter by: those of the first rows, and those that curate has counted."""
    verdicts, marks, has_verdicts, deadline = set[str](), set[str](), False, time.monotonic() + SEARCH_SECONDS
    with path.open("rb") as file:
        for line in islice(lines_from(file, 0), FACET_ROWS):
            with suppress(DistillError):
                row = read(line)
                verdicts |= {*objections(row)}
                marks |= {*labels(row)}
                has_verdicts = has_verdicts or "verdicts" in row
            if time.monotonic() > deadline:
                break
    if has_verdicts and path.name == "dropped.jsonl":
        verdicts |= _mapping(counts.get("against")).keys()
    if has_verdicts:
        marks |= _mapping(counts.get("labels")).keys()
    return {"verdicts": sorted(verdicts), "labels": sorted(marks)}


# --- what rows of any of the files have


def summary(line: Line) -> dict[str, Any]:
    """A row of the list, or why there is none."""
    try:
        return {"at": line.at, **_summary(read(line))}
    except (DistillError, RecursionError) as error:
        why = str(error) if line.is_ended else "still being written"
        text = line.data[:SHOWN_CHARACTERS].decode("utf-8", "replace")
        return {"at": line.at, "damage": why, "prompt": text}


def _summary(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": str(row.get("id", row.get("step", ""))),
        "prompt": (prompt(row) or json.dumps(row, ensure_ascii=False))[:SHOWN_CHARACTERS],
        "answer": answer(row)[:SHOWN_CHARACTERS],
        "length": length(row),
        "objections": objections(row),
        "labels": labels(row),
    }


def turns(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Role and text of each turn."""
    pairs = [(one.get("role"), one.get("content")) for one in objects(row.get("messages"))]
    return [(str(role), text if isinstance(text, str) else json.dumps(text)) for role, text in pairs]


def prompt(row: Mapping[str, Any]) -> str:
    """The last turn of the user, or a task's instruction and input."""
    asked = [text for role, text in turns(row) if role == "user"]
    parts = [row.get("instruction"), row.get("input")]
    return asked[-1] if asked else "\n".join(part for part in parts if isinstance(part, str) and part)


def answer(row: Mapping[str, Any]) -> str:
    """The last answer, or that of the student where there are several models."""
    given = [text for role, text in turns(row) if role == "assistant"]
    by_model = answers(row)
    return given[-1] if given else by_model.get("student") or next(iter(by_model.values()), "")


def answers(row: Mapping[str, Any]) -> dict[str, str]:
    """The text of each model's answer, in a row of answers.jsonl or samples.jsonl; of a pair, the rejected one."""
    several = {name: _mapping(one).get("text") for name, one in _mapping(row.get("answers")).items()}
    samples = {name: row.get(name) for name in ("student", "teacher")}
    samples["rejected"] = _mapping(row.get("rejected")).get("content")
    return {name: text for name, text in (several or samples).items() if isinstance(text, str)}


def length(row: Mapping[str, Any]) -> int:
    """Characters of the answer, or of the prompt where there is none."""
    return len(answer(row) or prompt(row))


def objections(row: Mapping[str, Any]) -> list[str]:
    """`rule/reason` of each verdict that drops the row, or why it was refused or failed."""
    dropping = [one for one in objects(row.get("verdicts")) if one.get("keep") is False]
    codes = [f"{one.get('rule')}/{one.get('reason')}" for one in dropping]
    refused, failed = meta(row).get("refused"), row.get("reason")
    codes += [f"refused/{refused}"] if isinstance(refused, str) else []
    codes += [f"failed/{failed}"] if isinstance(failed, str) else []
    return list(dict.fromkeys(codes))


def labels(row: Mapping[str, Any]) -> list[str]:
    """The labels of a session."""
    return texts(meta(row).get("labels"))


def meta(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row's meta; empty where it has none."""
    return _mapping(row.get("meta"))


def texts(value: Any) -> list[str]:
    """The texts of a list; none of anything else."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def shown(value: Any) -> Any:
    """The value with every text as it may be shown: secrets struck, hidden characters visible."""
    if isinstance(value, str):
        return visible(strike(value))
    if isinstance(value, Mapping):
        return {shown(str(key)): shown(item) for key, item in value.items()}
    return [shown(item) for item in value] if isinstance(value, (list, tuple)) else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none of anything else."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
