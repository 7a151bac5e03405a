"""The `explain-miss` and `clean` commands: why a request would be sent again, and what can be removed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from distill.collect.stage import choice_of, model_of, tasks_of
from distill.collect.stage import flows as collect_flows
from distill.compare.stage import compared
from distill.core import student_folder
from distill.core.console import Progress
from distill.core.files import LEFTOVER
from distill.curate.stage import asked_by_rule, curate, filter_of
from distill.engine import Outcome
from distill.engine.flows import Choose, Flows, Replay, by_role, first_miss_of_growth, first_misses
from distill.engine.journal.keys import Question
from distill.engine.journal.misses import lines, nearest
from distill.engine.journal.store import NAME, Journal
from distill.engine.providers import Provider
from distill.errors import RunFolderError
from distill.expand.stage import growth_of
from distill.pipeline.parts import load_recipe
from distill.run.context import Context
from distill.run.endpoints import hire
from distill.run.record import journal_of, opened, read_record
from distill.types import Endpoint, Flow, Session, Verdict

T = TypeVar("T")


def misses(
    path: Path,
    *,
    run_dir: Path | None = None,
    overrides: Iterable[str] = (),
    task: str | None = None,
    limit: int = 5,
    allowed: Collection[str] = (),
) -> list[str]:
    """For the first so many questions of any stage that the journal cannot answer, why.

    Of curate and compare, where they have run before, only the first rule or model with such questions is looked at:
    what comes later depends on its answers.

    Raises `RunFolderError` where there is no journal.
    """
    loaded = load_recipe(path, overrides=overrides, allowed=allowed)
    folder = run_dir or (path if path.is_dir() else Path("runs") / loaded.name)
    with ExitStack() as journals:
        reuse = [journals.enter_context(Journal.open(Path(other) / NAME, read_only=True)) for other in loaded.reuse]
        journal = journals.enter_context(Journal.open(folder / NAME, read_only=True, reuse=reuse))
        context = Context(folder, loaded, journal, hire(loaded, folder, to_ask=False), allowed)
        found = list(islice(_misses(context, task), limit))
        info = [lines(nearest(question, journal.questions()), of) for of, question in found]
    return [line for of_one in info for line in of_one] or [
        "nothing would be asked again: the journal has every answer"
    ]


def _misses(context: Context, task: str | None) -> Iterator[tuple[str, Question]]:
    """What would be asked, by stage and task."""
    stages = read_record(context.folder).get("stages", {})
    if context.teachers is not None:
        if task is None:
            yield from _of_expand(context)
        yield from _of_collect(context, task)
    if "curate" in stages and context.recipe.curate is not None:
        yield from _of_curate(context, task)
    if "compare" in stages and context.recipe.compare is not None:
        yield from _of_compare(context, task)


def _of_expand(context: Context) -> Iterator[tuple[str, Question]]:
    section = context.recipe.expand
    if section is not None:
        growth = growth_of(context)
        miss = first_miss_of_growth(growth, section.tasks, context.journal, _endpoints(context))
        if miss is not None:
            yield f"expand {miss[0]}", miss[1]


def _of_collect(context: Context, task: str | None) -> Iterator[tuple[str, Question]]:
    collect = context.recipe.collect
    if collect is None or not (collect.tasks or (context.folder / "tasks.jsonl").exists()):
        return
    tasks = [one for one in tasks_of(context) if task in (None, one.id)]
    if not tasks:
        raise RunFolderError(f'no task "{task}" in {context.folder}; expected an id of tasks.jsonl')
    choose = choice_of(context)
    asked = collect_flows(tasks, choose, context.recipe.seed)
    for name, question in first_misses(asked, context.journal, _endpoints(context), choose=model_of(tasks, choose)):
        yield f"collect {name}", question


def _endpoints(context: Context) -> dict[str, Endpoint]:
    assert context.teachers is not None
    return {name: provider.endpoint for name, provider in context.teachers.providers.items()}


class _Enough(Exception):
    """Ends a stage before it writes anything."""


@dataclass(frozen=True, slots=True)
class _Engine:
    """Answers from the journal, and ends the stage at the first question it lacks."""

    context: Context
    task: str | None
    found: list[tuple[str, Question]]
    part: str
    """Of which stage, and whom it asks."""
    providers: Mapping[str, Provider]

    def run(self, flows: Flows[T], *, choose: Choose = by_role) -> list[Outcome[T]]:
        """As of an engine. Raises `_Enough`."""
        replay = Replay(self.context.journal, {name: one.endpoint for name, one in self.providers.items()})
        outcomes = replay.run(flows, choose=choose)
        self.found.extend(
            (f"{self.part} {name}", question)
            for name, question in replay.misses
            if self.task in (None, name, name.partition(":")[0])
        )
        if self.found:
            raise _Enough
        return outcomes


class _Nobody:
    """Whom the last rule asks: when it is its turn, all others have asked."""

    scope: Literal["row"] = "row"
    role = "nobody"
    every_row = True

    def measure(self, session: Session) -> Flow[None]:
        """Of no session."""
        raise _Enough

    def decide(self, value: Any) -> Verdict:
        """Of no value."""
        raise _Enough


def _of_curate(context: Context, task: str | None) -> list[tuple[str, Question]]:
    """Curate up to the first rule with questions that the journal cannot answer."""
    found: list[tuple[str, Question]] = []

    def ask(flows: Flows[Any], *, rule: str, role: str) -> list[Outcome[Any]]:
        if role == _Nobody.role:
            raise _Enough
        named = [(name.partition(":")[2], make) for name, make in flows]
        with asked_by_rule(context, rule, role) as provider:
            return _Engine(context, task, found, f"curate {rule}", {role: provider}).run(named)

    rules = [(rule.filter, filter_of(context, rule)) for rule in context.recipe.curate or []]
    with suppress(_Enough):
        curate(context.folder, filters=[*rules, ("", _Nobody())], test=0, seed=context.recipe.seed, ask=ask)
    return found


def _of_compare(context: Context, task: str | None) -> list[tuple[str, Question]]:
    """Compare up to the first model with questions that the journal cannot answer."""
    found: list[tuple[str, Question]] = []

    def engine(providers: Mapping[str, Provider], *, progress: Progress, local: bool) -> _Engine:
        return _Engine(context, task, found, f"compare {', '.join(providers)}", providers)

    def all_asked() -> float:
        raise _Enough

    with suppress(_Enough):
        compared(context, engine, usd=all_asked)
    return found


def clean(folder: Path) -> list[str]:
    """Trim a run's journal, remove the student before the present one and what killed processes left; what was freed.

    Raises `RunFolderError` for what is no run, `RunLocked` while another process writes in it.
    """
    read_record(folder)
    loaded = load_recipe(folder)
    with opened(folder, loaded) as run:
        left = [path for path in folder.rglob(".*") if path.is_file() and LEFTOVER.match(path.name)]
        left += [
            new for name in (student_folder.STUDENT, student_folder.NEXT) if (new := folder / name / ".new").is_dir()
        ]
        freed = sum(map(_size, left))
        for path in left:
            student_folder.remove(path)
        before = _remove_previous(folder)
        with journal_of(run) as journal:
            trimmed = journal.trim()
    return [
        *before,
        f"{folder}: {len(left)} leftovers removed ({freed:,} bytes), the journal is {max(0, trimmed):,} bytes smaller",
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
