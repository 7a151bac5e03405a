"""The `explain-miss` and `clean` commands: why a request would be sent again, and what can be removed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rapidfuzz.distance import Indel

from distill.collect.stage import tasks_of
from distill.core import student_folder
from distill.core.files import LEFTOVER, flatten
from distill.engine.journal.keys import Question, endpoint_json
from distill.engine.journal.store import NAME, Journal
from distill.errors import RunFolderError
from distill.pipeline.origins import load_addressed
from distill.pipeline.parts import load_recipe
from distill.pipeline.rehearsal import PREFIX, Miss, rehearse
from distill.run.context import Context, RunOptions
from distill.run.endpoints import teachers_of
from distill.run.record import journal_of, opened, read_record, run_record
from distill.run.reuse import reused_runs

LONGEST_SHOWN = 80
"""Characters of each of two texts that differ."""


def misses(
    path: Path,
    *,
    run_dir: Path | None = None,
    overrides: Iterable[str] = (),
    task: str | None = None,
    limit: int = 5,
    allowed: Collection[str] = (),
) -> list[str]:
    """Explains the first `limit` questions of any stage that the journal cannot answer.

    In expand, curate and compare these are of the first proposal, rule or model with such questions: what comes later
    depends on its answers. Raises `RunFolderError` where there is no journal, or no such task.
    """
    recipe, folder = load_addressed(path, run_dir, overrides, allowed)
    with ExitStack() as journals:
        reuse = [
            journals.enter_context(Journal.open(other / NAME, read_only=True)) for other in reused_runs(folder, recipe)
        ]
        journal = journals.enter_context(Journal.open(folder / NAME, read_only=True, reuse=reuse))
        context = Context(
            folder, recipe, journal, teachers_of(recipe, folder, to_ask=False), RunOptions(allowed=allowed)
        )
        lines = [
            line
            for name, question in islice(_misses(context, task), limit)
            for line in explanation(name, question, journal.questions())
        ]
    return lines or ["nothing would be asked again: the journal has every answer"]


def _misses(context: Context, task: str | None) -> Iterator[tuple[str, Question]]:
    """The questions that would be sent, with stage and flow."""
    for stage in _stages(context, task):
        for part, flow, question in _misses_of(stage, context):
            name = flow.partition(":")[2] if stage == "curate" else flow  # a row's place is before its id
            if task in (None, name, name.partition(":")[0]):
                yield f"{part} {name}", question


def _stages(context: Context, task: str | None) -> list[str]:
    """The stages that can ask: collect where its tasks are there, curate and compare where they have run before."""
    recipe, begun = context.recipe, run_record(context.folder).stages
    collect = recipe.collect
    can_ask = {
        "expand": recipe.expand is not None and task is None,
        "collect": collect is not None and (collect.tasks is not None or (context.folder / "tasks.jsonl").exists()),
        "curate": recipe.curate is not None and "curate" in begun,
        "compare": recipe.compare is not None and "compare" in begun,
    }
    if task is not None and can_ask["collect"] and task not in {one.id for one in tasks_of(context)}:
        raise RunFolderError(f'no task "{task}" in {context.folder}; expected an id of tasks.jsonl')
    return [stage for stage, asks in can_ask.items() if asks]


def _misses_of(stage: str, context: Context) -> list[Miss]:
    with TemporaryDirectory() as folder:
        return rehearse(stage, context, Path(folder))


def explanation(name: str, question: Question, journal_rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """The fields in which a question differs from the nearest one in the journal.

    The nearest differs in the fewest fields, then in the fewest characters. `journal_rows` holds key, request and
    endpoint, both as canonical JSON.
    """
    fields = _fields(question.request_json, endpoint_json(question.endpoint))
    differences = ((key, _differences(fields, _fields(*texts))) for key, *texts in journal_rows)
    key, nearest = min(differences, key=lambda one: _rank(one[1]), default=("", None))
    if nearest is None:
        return [f"{name}: the journal is empty, everything is asked for the first time"]
    if not nearest:
        return [f"{name}: the same question is journalled, but failed and may be asked again"]
    count = "one field" if len(nearest) == 1 else f"{len(nearest)} fields"
    return [
        f"{name}: differs from the nearest journalled question ({key[:12]}) in {count}",
        *(f"  {field}: {_both_values(*pair)}" for field, pair in nearest.items()),
    ]


def _differences(fields: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of the fields that differ."""
    pairs = {name: (fields.get(name), other.get(name)) for name in sorted(fields.keys() | other.keys())}
    return {name: (one, another) for name, (one, another) in pairs.items() if one != another}


def _rank(differences: Mapping[str, tuple[Any, Any]]) -> tuple[int, float]:
    return len(differences), sum(_distance(one, another) for one, another in differences.values())


def _fields(request: str, endpoint: str) -> dict[str, Any]:
    return flatten({"request": json.loads(request), "endpoint": json.loads(endpoint)}, lists=True)


def _distance(value: Any, other: Any) -> float:
    """How much two values differ, in [0, 1]."""
    are_texts = isinstance(value, str) and isinstance(other, str)
    return Indel.normalized_distance(value, other) if are_texts else 1.0


def _both_values(now: Any, before: Any) -> str:
    """Both values; texts from a few characters before their first difference."""
    if isinstance(now, str) and isinstance(before, str):
        pairs = list(zip(now, before, strict=False))
        same = next((place for place, (one, other) in enumerate(pairs) if one != other), len(pairs))
        start = max(0, same - 20)
        return f"{_cut(now, start)} was {_cut(before, start)}"
    return " was ".join("its default" if value is None else _json(value) for value in (now, before))


def _cut(text: str, start: int) -> str:
    end = start + LONGEST_SHOWN
    return f"{'…' if start else ''}{_json(text[start:end])}{'…' if end < len(text) else ''}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def clean(folder: Path) -> list[str]:
    """Trim a run's journal; remove the previous student and leftovers of killed processes. Returns what was freed.

    Raises `RunFolderError` for what is no run, `RunLocked` while another process writes in it.
    """
    read_record(folder)
    recipe = load_recipe(folder)
    with opened(folder, recipe, takeover=True) as run:
        leftovers = [path for path in folder.rglob(".*") if path.is_file() and LEFTOVER.match(path.name)]
        leftovers += [
            new for name in (student_folder.STUDENT, student_folder.NEXT) if (new := folder / name / ".new").is_dir()
        ]
        leftovers += folder.glob(f"{PREFIX}*")
        freed_bytes = sum(map(_size, leftovers))
        for path in leftovers:
            student_folder.remove(path)
        before = _remove_previous(folder)
        with journal_of(run) as journal:
            trimmed_bytes = journal.trim()
    return [
        *before,
        f"{folder}: {len(leftovers)} leftovers removed ({freed_bytes:,} bytes), "
        f"the journal is {max(0, trimmed_bytes):,} bytes smaller",
    ]


def _remove_previous(folder: Path) -> list[str]:
    """Remove the previous student, unless it is the only one."""
    previous = folder / student_folder.PREVIOUS
    if not (previous.is_dir() and student_folder.is_student(student_folder.current(folder))):
        return []
    size = _size(previous)
    student_folder.remove(previous)
    return [
        f"{previous} removed ({size / 1e6:,.1f} MB): the student before the one in {folder / student_folder.STUDENT}"
    ]


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
