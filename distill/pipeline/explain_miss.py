"""The `explain-miss` and `clean` commands: why a request would be sent again, and what can be removed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rapidfuzz.distance import Indel

from distill.collect.stage import tasks_of
from distill.core import console, student_folder
from distill.core.files import LEFTOVER, flatten
from distill.engine import EngineStopped
from distill.engine.journal.keys import Question, endpoint_json
from distill.engine.journal.store import NAME, Journal
from distill.errors import RunFolderError, StageIncomplete
from distill.pipeline.parts import load_recipe
from distill.pipeline.stages import PIPELINE
from distill.run.context import Context, RunOptions
from distill.run.endpoints import hire
from distill.run.layout import STAGES
from distill.run.record import StageRecord, journal_of, opened, read_record

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
    """For the first `limit` questions of any stage that the journal cannot answer, why.

    Of expand, curate and compare only the first proposal, rule or model with such questions counts: what comes later
    depends on its answers. Raises `RunFolderError` where there is no journal, or no such task.
    """
    loaded = load_recipe(path, overrides=overrides, allowed=allowed)
    folder = run_dir or (path if path.is_dir() else Path("runs") / loaded.name)
    with ExitStack() as journals:
        reuse = [journals.enter_context(Journal.open(Path(other) / NAME, read_only=True)) for other in loaded.reuse]
        journal = journals.enter_context(Journal.open(folder / NAME, read_only=True, reuse=reuse))
        context = Context(folder, loaded, journal, hire(loaded, folder, to_ask=False), RunOptions(allowed=allowed))
        first = islice(_misses(context, task), limit)
        lines = [line for name, question in first for line in explanation(name, question, journal.questions())]
    return lines or ["nothing would be asked again: the journal has every answer"]


def _misses(context: Context, task: str | None) -> Iterator[tuple[str, Question]]:
    """The questions that would be sent, with stage and flow."""
    for stage in _stages(context, task):
        for part, flow, question in _misses_of(stage, context):
            name = flow.partition(":")[2] if stage == "curate" else flow  # a row's place is before its id
            if task in (None, name, name.partition(":")[0]):
                yield f"{part} {name}", question


def _stages(context: Context, task: str | None) -> Iterator[str]:
    """The stages that can ask: curate and compare where they have run before."""
    recipe, begun = context.recipe, read_record(context.folder).get("stages", {})
    if context.teachers is not None and recipe.expand is not None and task is None:
        yield "expand"
    collect = recipe.collect
    if context.teachers is not None and collect and (collect.tasks or (context.folder / "tasks.jsonl").exists()):
        if task is not None and task not in {one.id for one in tasks_of(context)}:
            raise RunFolderError(f'no task "{task}" in {context.folder}; expected an id of tasks.jsonl')
        yield "collect"
    if recipe.curate is not None and "curate" in begun:
        yield "curate"
    if recipe.compare is not None and "compare" in begun:
        yield "compare"


def _misses_of(stage: str, context: Context) -> list[tuple[str, str, Question]]:
    """Run a stage on its inputs in a folder apart, with an engine that sends nothing."""
    misses: list[tuple[str, str, Question]] = []
    with TemporaryDirectory() as folder, console.silenced():
        for name in STAGES[stage].inputs:
            path = student_folder.current(context.folder) if name == student_folder.STUDENT else context.folder / name
            if path.exists():
                (Path(folder) / name).symlink_to(path.absolute())
        compare = context.recipe.compare
        without: dict[str, Any] = {"sources": [], "compare": compare and compare.model_copy(update={"lm_eval": None})}
        apart = replace(
            context,
            folder=Path(folder),
            recipe=context.recipe.model_copy(update=without),
            on_miss=lambda part, flow, question: misses.append((part, flow, question)),
        )
        with suppress(EngineStopped, StageIncomplete):
            PIPELINE[stage].run(apart, StageRecord())
    return misses


def explanation(name: str, question: Question, journalled: Iterable[tuple[str, str, str]]) -> list[str]:
    """In which fields a question differs from the nearest one in the journal.

    That is the one that differs in the fewest fields, then in the fewest characters. `journalled` holds key, request
    and endpoint, both as canonical JSON.
    """
    fields = _fields(question.request_json, endpoint_json(question.endpoint))
    nearest: tuple[tuple[int, float], str, list[str]] | None = None
    for key, request, endpoint in journalled:
        other = _fields(request, endpoint)
        names = sorted(name for name in fields.keys() | other.keys() if fields.get(name) != other.get(name))
        if nearest is not None and len(names) > nearest[0][0]:
            continue
        pairs = [(fields.get(name), other.get(name)) for name in names]
        rank = len(names), sum(_distance(one, another) for one, another in pairs)
        if nearest is None or rank < nearest[0]:
            lines = [f"  {field}: {_shown(*pair)}" for field, pair in zip(names, pairs, strict=True)]
            nearest = rank, key, lines
    if nearest is None:
        return [f"{name}: the journal is empty, everything is asked for the first time"]
    _, key, lines = nearest
    if not lines:
        return [f"{name}: the same question is journalled, but failed and may be asked again"]
    count = "one field" if len(lines) == 1 else f"{len(lines)} fields"
    return [f"{name}: differs from the nearest journalled question ({key[:12]}) in {count}", *lines]


def _fields(request: str, endpoint: str) -> dict[str, Any]:
    return flatten({"request": json.loads(request), "endpoint": json.loads(endpoint)}, lists=True)


def _distance(value: Any, other: Any) -> float:
    """How much two values differ, in [0, 1]."""
    are_texts = isinstance(value, str) and isinstance(other, str)
    return Indel.normalized_distance(value, other) if are_texts else 1.0


def _shown(asked: Any, journalled: Any) -> str:
    """Both values; of texts, from a little before their first difference on."""
    if isinstance(asked, str) and isinstance(journalled, str):
        pairs = list(zip(asked, journalled, strict=False))
        same = next((place for place, (one, other) in enumerate(pairs) if one != other), len(pairs))
        return f"{_cut(asked, max(0, same - 20))} was {_cut(journalled, max(0, same - 20))}"
    return " was ".join("its default" if value is None else _json(value) for value in (asked, journalled))


def _cut(text: str, start: int) -> str:
    end = start + LONGEST_SHOWN
    return f"{'…' if start else ''}{_json(text[start:end])}{'…' if end < len(text) else ''}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def clean(folder: Path) -> list[str]:
    """Trim a run's journal, remove the student before the present one and what killed processes left; what was freed.

    Raises `RunFolderError` for what is no run, `RunLocked` while another process writes in it.
    """
    read_record(folder)
    loaded = load_recipe(folder)
    with opened(folder, loaded) as run:
        leftovers = [path for path in folder.rglob(".*") if path.is_file() and LEFTOVER.match(path.name)]
        leftovers += [
            new for name in (student_folder.STUDENT, student_folder.NEXT) if (new := folder / name / ".new").is_dir()
        ]
        freed = sum(map(_size, leftovers))
        for path in leftovers:
            student_folder.remove(path)
        before = _remove_previous(folder)
        with journal_of(run) as journal:
            trimmed = journal.trim()
    return [
        *before,
        f"{folder}: {len(leftovers)} leftovers removed ({freed:,} bytes), "
        f"the journal is {max(0, trimmed):,} bytes smaller",
    ]


def _remove_previous(folder: Path) -> list[str]:
    """Remove the student before the one that is there; where none is, it is the only one, and stays."""
    previous = folder / student_folder.PREVIOUS
    if not (previous.is_dir() and student_folder.is_student(student_folder.current(folder))):
        return []
    size = _size(previous)
    student_folder.remove(previous)
    return [
        f"{previous} removed ({size / 1e6:,.1f} MB): the student before the one in {folder / student_folder.STUDENT}"
    ]


def _size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
