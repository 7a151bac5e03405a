"""One row of a run with its verdicts, its lineage, and the requests behind it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.engine.journal import viewing
from distill.engine.journal.store import NAME
from distill.errors import DistillError, RunFolderError
from distill.run.funnel import short
from distill.ui import rows, runs
from distill.ui.lines import lines_from

LONGEST_TEXT = 100_000
"""Characters shown of one text; of a longer one also how many are left out."""
MOST_REQUESTS = 8
FIND_SECONDS = 1.0
"""Time that is given to finding a row in another file."""


def detail(folder: Path, name: str, at: int) -> dict[str, Any]:
    """The row that begins at an offset of a file. Raises `RunFolderError` where there is none, or a damaged one."""
    path = runs.file_of(folder, name)
    try:
        row = _row_at(path, at)
        return {
            "id": str(row.get("id", row.get("step", ""))),
            "turns": [{"role": role, "text": _short(text)} for role, text in rows.turns(row)],
            "prompt": _short(rows.prompt(row)),
            "answers": {side: _short(text) for side, text in rows.answers(row).items()},
            "verdicts": rows.objects(row.get("verdicts")),
            "labels": rows.labels(row),
            "objections": rows.objections(row),
            "lineage": _lineage(folder, name, row),
            "requests": _requests(folder, row),
            "json": _short(json.dumps(row, ensure_ascii=False, indent=2)),
        }
    except RecursionError as error:
        raise RunFolderError("the row is nested too deeply to be shown") from error


def _row_at(path: Path, at: int) -> dict[str, Any]:
    with path.open("rb") as file:
        file.seek(max(at - 1, 0))
        if at < 0 or (at > 0 and file.read(1) != b"\n"):
            raise RunFolderError(f"no row of {path.name} begins there; the file has changed since: look again")
        line = next(lines_from(file, at), None)
    if line is None:
        raise RunFolderError(f"{path.name} is shorter now; look again")
    try:
        return rows.read(line)
    except DistillError as error:
        raise RunFolderError("the row is still being written" if not line.is_ended else f"no row: {error}") from error


def _short(text: str) -> str:
    rest = len(text) - LONGEST_TEXT
    return text if rest <= 0 else f"{text[:LONGEST_TEXT]} … ({rest:,} more characters are in the run folder)"


def _lineage(folder: Path, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Where the row comes from (seeds, strategy, nearest), and the files of the run that hold it too."""
    meta = rows.meta(row)
    task = str(meta.get("task") or row.get("id") or "")
    own = {key: meta[key] for key in ("strategy", "teacher", "truncated", "category", "request") if key in meta}
    near = meta.get("nearest")
    return {
        "facts": [[key, str(value)] for key, value in own.items()],
        "seeds": rows.texts(meta.get("lineage")),
        "nearest": ", ".join(f"{key} {short(value)}" for key, value in near.items()) if isinstance(near, dict) else "",
        "task": task,
        "places": list(_places(folder, name, task)) if task else [],
    }


def _places(folder: Path, name: str, id: str) -> Iterator[dict[str, Any]]:
    """The rows of the same task in the run's other files, as far as they are found in `FIND_SECONDS`."""
    deadline = time.monotonic() + FIND_SECONDS
    for other, path in runs.files(folder).items():
        if other == name or "/" in other or time.monotonic() > deadline:
            continue
        if (at := _find(path, id, deadline)) is not None:
            yield {"file": other, "at": at}


def _find(path: Path, id: str, deadline: float) -> int | None:
    with path.open("rb") as file:
        for line, row in rows.fitting(file, rows.Query(id), 0):
            if row is not None and id in (row.get("id"), rows.meta(row).get("task")):
                return line.at
            if time.monotonic() > deadline:
                return None
    return None


def _requests(folder: Path, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was asked for the row, and what came back, from the run's own journal."""
    meta = rows.meta(row)
    wanted = [*rows.texts(meta.get("keys")), *rows.texts([meta.get("key")])][:MOST_REQUESTS]
    if not wanted or not (folder / NAME).is_file():
        return []
    try:
        found = viewing.behind(folder / NAME, wanted)
    except RunFolderError as error:
        return [{"fault": str(error)}]
    missing = len(wanted) - len(found)
    absent = (
        [{"fault": f"{missing} of its answers are in the journal of a run that this one reuses"}] if missing else []
    )
    return [_request(one) for one in found] + absent


def _request(one: viewing.JournalledAnswer) -> dict[str, Any]:
    messages = [{"role": role, "text": _short(text)} for role, text in rows.turns(one.request)] or [
        {"role": "prompt", "text": _short(str(one.request.get("prompt") or ""))}
    ]
    usage = one.usage or {}
    sampling = one.request.get("sampling")
    facts = {
        "stage": one.stage,
        "asked": one.created,
        "model": one.endpoint.get("model"),
        "address": one.endpoint.get("url"),
        "finish": one.finish,
        "tokens": f"{usage.get('prompt_tokens', '–')} + {usage.get('completion_tokens', '–')}" if usage else None,
        "sampling": json.dumps(sampling, ensure_ascii=False) if sampling else None,
        "key": one.key,
    }
    return {
        "facts": [[name, str(value)] for name, value in facts.items() if value not in (None, "")],
        "messages": messages,
        "text": _short(one.text),
    }
