"""Stage collect: asks a teacher to answer every task; writes sessions.jsonl in task order, and failures.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Protocol, TypeAlias

from distill.collect.provenance import LABELS, SAME_ANSWER, Witness, with_same_answers
from distill.collect.strategies import STRATEGIES
from distill.core import console, registry, weights
from distill.core.hashing import file_sha256
from distill.core.jsonl import fault_of, write_rows
from distill.engine import EngineStopped, Outcome
from distill.engine.engine import Engine
from distill.engine.providers import one_line
from distill.errors import RecipeError, StageIncomplete
from distill.formats.importers import Address, load_tasks
from distill.formats.named_columns import named_columns
from distill.formats.sources import Dataset, ingest, splitter
from distill.recipe import Recipe
from distill.run.context import Context, _with_samplings, asking, identity
from distill.run.decisive import flat, of_part
from distill.run.record import ACCEPTABLE, StageRecord
from distill.types import Failure, Flow, Session, Task

ROLE = "teacher"
NO_SESSION = Failure(key="", reason="no_session", detail="the strategy returned no session", transient=False)
UNJUDGED, MANY_UNJUDGED = "unjudged", 0.2
"""Label of sessions without a judge decision, and the share above which we warn."""
TaskResult: TypeAlias = Session | tuple[Session, ...] | Failure
"""Result of a task. The sessions of a task are called `ID`, `ID.2`, `ID.3` …; none at all is a failure."""

REVISION = 2
"""Raise it with any change of the stage's output for the same inputs and options, shipped prompts included."""


class Strategy(Protocol):
    """A part that turns a task into one or more sessions by sending requests."""

    def flow(self, task: Task, rng: Random) -> Flow[TaskResult]:
        """The session or sessions, or the failure in their place."""


@dataclass(frozen=True, slots=True)
class TeacherChoice:
    """The teacher assigned to a task, and the strategy that asks it."""

    name: str
    """Its name in the engine."""
    display_name: str
    """Its name in the session's meta."""
    strategy: Strategy
    model: str = ""
    """The model that its endpoint is asked for; empty where distill serves it."""


def collect(
    folder: Path,
    *,
    tasks: Sequence[Task],
    choose: Callable[[Task], TeacherChoice],
    strategy_name: str,
    seed: int,
    engine: Engine,
    max_failed: float,
    before: Sequence[Session] = (),
) -> tuple[str, Mapping[str, Any]]:
    """Answer every task; returns the stage's status, `done` or `partial`, and its counts.

    `partial` means that another run may answer more. `choose` assigns each task its teacher. The sessions of `before`,
    those of the recipe's sources, come first in sessions.jsonl. Raises `StageIncomplete` when more than the share
    `max_failed` of the tasks failed, and what `Engine.run` raises; in either case finished sessions are written first.
    """
    choices = {task.id: choose(task) for task in tasks}
    marks = {task: {"strategy": strategy_name, "teacher": one.display_name} for task, one in choices.items()}
    try:
        outcomes = engine.run(flows(tasks, choose, seed), choose=model_of(tasks, choose))
    except EngineStopped as stop:
        _write(folder, stop.outcomes, marks, before)
        raise
    sessions, failed = _write(folder, outcomes, marks, before)
    _accept(failed, len(tasks), max_failed)
    transient = any(failure.transient for row in failed for failure in row["failures"])
    truncated = sum(1 for session in sessions if session.meta.get("truncated"))
    counts = {"tasks": len(tasks), "sessions": len(sessions), "failed": len(failed), "truncated": truncated}
    labels = Counter(label for session in sessions for label in session.meta.get("labels", ()))
    counts |= {label: labels[label] for label in (*LABELS, UNJUDGED) if labels[label]}
    if (unjudged := labels[UNJUDGED]) and unjudged > MANY_UNJUDGED * len(sessions):
        console.warn(
            f"collect: {unjudged} of {len(sessions)} sessions have no readable verdict of the judge, and their"
            " first complete answer was taken; use a stronger `judge`, a greater judge_sampling.max_tokens, or"
            " another `pick`"
        )
    return "partial" if transient else "done", counts


def flows(
    tasks: Sequence[Task], choose: Callable[[Task], TeacherChoice], seed: int
) -> list[tuple[str, Callable[[], Flow[TaskResult]]]]:
    """The id and flow factory of each task; a flow made twice sends the same requests."""

    def make(task: Task) -> Flow[TaskResult]:
        teacher = choose(task)
        return Witness(teacher.model).watch(teacher.strategy.flow(task, Random(f"{seed}:{task.id}")))

    return [(task.id, partial(make, task)) for task in tasks]


def model_of(tasks: Sequence[Task], choose: Callable[[Task], TeacherChoice]) -> Callable[[str, str], str]:
    """A function from a task's id and a role in its flow to the engine's name of the model."""
    names = {task.id: choose(task).name for task in tasks}
    return lambda task, role: names[task] if role == ROLE else role


def _write(
    folder: Path,
    outcomes: Sequence[Outcome[TaskResult]],
    marks: Mapping[str, Mapping[str, str]],
    before: Sequence[Session],
) -> tuple[list[Session], list[dict[str, Any]]]:
    """Write the results in task order; returns the sessions and the rows of failures.jsonl."""
    sessions = [
        replace(session, id=_session_id(outcome.id, number, marks), meta={**session.meta, **marks[outcome.id]})
        for outcome in outcomes
        for number, session in enumerate(_sessions(outcome), start=1)
    ]
    sessions, common = with_same_answers(sessions, lambda session: str(session.meta.get("teacher")))
    if common:
        count = sum(SAME_ANSWER in session.meta["labels"] for session in sessions)
        shown = one_line(common, 60)
        console.warn(
            f'collect: {count} sessions share their answer with many others, such as "{shown}"; see their label'
        )
    failed = [
        {"id": outcome.id, "stage": "collect", "failures": _failures(outcome)}
        for outcome in outcomes
        if not _sessions(outcome)
    ]
    try:
        write_rows(folder / "sessions.jsonl", [*before, *sessions])
    except (TypeError, ValueError, RecursionError):
        storable = [_storable(outcome) for outcome in outcomes]
        if storable == outcomes:
            raise
        return _write(folder, storable, marks, before)
    write_rows(folder / "failures.jsonl", failed)
    return sessions, failed


def _storable(outcome: Outcome[TaskResult]) -> Outcome[TaskResult]:
    """The outcome without the sessions that no file can hold, which an odd response may bring about."""
    faults = {id(session): fault for session in _sessions(outcome) if (fault := fault_of(session))}
    rest = tuple(session for session in _sessions(outcome) if id(session) not in faults)
    if not faults or rest:
        return replace(outcome, value=rest) if faults else outcome
    detail = one_line(f"its session cannot be stored: {next(iter(faults.values()))}")
    return replace(outcome, value=Failure(key="", reason="unstorable", detail=detail, transient=False))


def _sessions(outcome: Outcome[TaskResult]) -> tuple[Session, ...]:
    results = outcome.value if isinstance(outcome.value, tuple) else (outcome.value,)
    return tuple(result for result in results if isinstance(result, Session))


def _session_id(task: str, number: int, tasks: Collection[str]) -> str:
    """The id of a task's n-th session; never that of another task."""
    if number == 1:
        return task
    dots = "."
    while f"{task}{dots}{number}" in tasks:
        dots += "."
    return f"{task}{dots}{number}"


def _failures(outcome: Outcome[TaskResult]) -> list[Failure]:
    """The failures sent into the flow, and the one it returned if that is another."""
    returned = [outcome.value] if isinstance(outcome.value, Failure) else [NO_SESSION] if outcome.value == () else []
    return [*outcome.failures, *(failure for failure in returned if failure not in outcome.failures)]


def _accept(failed: Sequence[Mapping[str, Any]], tasks: int, max_failed: float) -> None:
    """Raise `StageIncomplete` when more tasks failed than `max_failed` allows."""
    if len(failed) <= max_failed * tasks:
        return
    last: list[Failure] = failed[-1]["failures"]
    why = f" (such as {last[-1].reason}: {last[-1].detail})" if last else ""
    again = any(failure.transient for row in failed for failure in row["failures"])
    advice = "run again to ask once more" if again else "see failures.jsonl; --retry-failed asks them once more"
    raise StageIncomplete(
        f"{len(failed)} of {tasks} tasks failed{why}, more than collect.max_failed ({max_failed:.0%}) allows; {advice}"
    )


def options(context: Context) -> dict[str, Any]:
    """The recipe's values that determine the sessions, by key."""
    loaded = context.recipe
    values = {"seed": loaded.seed, **_source_options(loaded)}
    if (section := loaded.collect) is None:
        return values
    return {
        **values,
        **flat(section, "collect", only=("strategy", "tasks"), files=loaded.files),
        **flat(section.options, "collect", files=loaded.files),
        **of_part("collect.strategy", section.strategy),
        **identity(context),
    }


def _source_options(loaded: Recipe) -> dict[str, Any]:
    """The sources, with the hashes of their files and tokenizers."""
    model = loaded.student.model if loaded.student is not None else ""
    values: dict[str, Any] = {"sources": [source.display_name for source in loaded.sources]} if loaded.sources else {}
    for source in loaded.sources:
        key = f"sources.{source.display_name}"
        values |= flat(source, key, files=loaded.files) | of_part(key, source.importer)
        if source.max_tokens is not None:
            tokenizer = source.tokenizer or model
            path = Path(tokenizer) / "tokenizer.json"
            digest = file_sha256(path) if path.is_file() else weights.fingerprint(tokenizer)
            values[f"{key}.tokenizer sha256"] = digest
    return values


def tasks_of(context: Context) -> list[Task]:
    """The tasks that collect answers."""
    section = context.recipe.collect
    assert section is not None
    return load_tasks(Path(section.tasks) if section.tasks else context.folder / "tasks.jsonl")


def choice_of(context: Context) -> Callable[[Task], TeacherChoice]:
    """A function from a task to the teacher that answers it and the strategy that asks."""
    section, teachers = context.recipe.collect, context.teachers
    assert section is not None
    part = registry.part(STRATEGIES, section.strategy, kind="strategy", allowed=context.options.allowed)
    options = _with_samplings(section.options, context.recipe)
    choices = {
        one.name: TeacherChoice(
            one.name,
            one.section.display_name,
            part(options, sampling=one.section.sampling.sampling()),
            model="" if one.section.serve else one.section.model,
        )
        for one in teachers
    }
    return lambda task: choices[teachers.pick(task).name]


def run(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """Run the stage collect: tasks and sources become sessions."""
    imported, counts = _imported(context)
    section = context.recipe.collect
    if section is None:
        write_rows(context.folder / "sessions.jsonl", imported)
        write_rows(context.folder / "failures.jsonl", [])
        return counts
    tasks = tasks_of(context)
    if shared := {session.id for session in imported} & {task.id for task in tasks}:
        raise RecipeError(f"sources: the id {min(shared)} is also that of a task; give the source another `name`")
    with asking(context, "collect", record, len(tasks)) as engine:
        status, collected = collect(
            context.folder,
            tasks=tasks,
            choose=choice_of(context),
            strategy_name=section.strategy,
            seed=context.recipe.seed,
            engine=engine,
            max_failed=section.max_failed,
            before=imported,
        )
    record.detail = ACCEPTABLE if status == "partial" else None
    _warn_of_cuts(collected["truncated"], collected["sessions"], context.recipe)
    return {**counts, **collected, "sessions": len(imported) + collected["sessions"]}


def _warn_of_cuts(cut: int, sessions: int, recipe: Recipe) -> None:
    """Warn of answers that were cut, with the remedies."""
    bounds = {one.sampling.max_tokens for one in recipe.teachers if one.sampling.max_tokens is not None}
    at = f" at {' or '.join(map(str, sorted(bounds)))} tokens" if bounds else ""
    if cut:
        console.warn(
            f"collect: {cut} of {sessions} answers ({cut / sessions:.0%}) were cut{at}; raise"
            " teacher.sampling.max_tokens (which asks all of them again), ask for shorter ones (collect.system), or"
            " drop them in curate: {filter: truncated, drop: true}"
        )


def _imported(context: Context) -> tuple[list[Session], Mapping[str, Any]]:
    """The sessions of the recipe's sources, and counts."""
    loaded = context.recipe
    if not loaded.sources:
        return [], {}
    default = loaded.student.model if loaded.student is not None else ""
    datasets = [
        Dataset(
            format=source.importer,
            address=Address(source.path or source.hub or "", source.split, source.revision, source.config),
            columns=named_columns(source.prompt, source.answer, source.system, source.reference),
            licence=source.licence,
            name=source.display_name,
            take=source.take,
            weight=source.weight,
            splitter=splitter(source.tokenizer or default, source.max_tokens) if source.max_tokens else None,
        )
        for source in loaded.sources
    ]
    sessions, counts = ingest(context.folder, sources=datasets, seed=loaded.seed, allowed=context.options.allowed)
    return sessions, {**counts, "sessions": len(sessions)}
