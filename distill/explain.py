"""Looks into a run's journal without asking anybody: why something would be asked again, and what can go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from re import compile as pattern

from distill.catalogue import load_recipe
from distill.collect import flows as collect_flows
from distill.collect import model_of
from distill.engine.flows import first_miss_of_growth, first_misses
from distill.errors import RunFolderError
from distill.journal import NAME, Journal
from distill.keys import Question
from distill.misses import lines, nearest
from distill.run import opened, read_record
from distill.steps import Context, choice_of, growth_of, tasks_of
from distill.teachers import hire

LEFTOVER = pattern(r"^\..+\.[a-z0-9_]{8}$")
"""The name of what an atomic write leaves behind when it is killed."""


def misses(
    path: Path,
    *,
    run_dir: Path | None = None,
    overrides: Iterable[str] = (),
    task: str | None = None,
    limit: int = 5,
    allowed: Collection[str] = (),
) -> list[str]:
    """For the first so many questions of expand and collect that the journal cannot answer, why.

    Raises `RunFolderError` where there is no journal.
    """
    loaded = load_recipe(path, overrides=overrides, allowed=allowed)
    folder = run_dir or (path if path.is_dir() else Path("runs") / loaded.name)
    with ExitStack() as journals:
        reuse = [journals.enter_context(Journal.open(Path(other) / NAME, read_only=True)) for other in loaded.reuse]
        journal = journals.enter_context(Journal.open(folder / NAME, read_only=True, reuse=reuse))
        context = Context(folder, loaded, journal, hire(loaded, folder, to_ask=False), allowed)
        found = list(islice(_found(context, task), limit))
        told = [lines(nearest(question, journal.questions()), of) for of, question in found]
    return [line for of_one in told for line in of_one] or [
        "nothing would be asked again: the journal has every answer"
    ]


def _found(context: Context, task: str | None) -> Iterator[tuple[str, Question]]:
    if context.teachers is None:
        return
    endpoints = {name: provider.endpoint for name, provider in context.teachers.providers.items()}
    section = context.recipe.expand
    if section is not None and task is None:
        growth = growth_of(context)
        if (miss := first_miss_of_growth(growth, section.tasks, context.journal, endpoints)) is not None:
            yield f"expand {miss[0]}", miss[1]
    collect = context.recipe.collect
    if collect is None or not (collect.tasks or (context.folder / "tasks.jsonl").exists()):
        return
    tasks = [one for one in tasks_of(context) if task in (None, one.id)]
    if not tasks:
        raise RunFolderError(f'no task "{task}" in {context.folder}; expected an id of tasks.jsonl')
    choose = choice_of(context)
    asked = collect_flows(tasks, choose, context.recipe.seed)
    for name, question in first_misses(asked, context.journal, endpoints, choose=model_of(tasks, choose)):
        yield f"collect {name}", question


def clean(folder: Path) -> list[str]:
    """Trim a run's journal and remove what killed processes left; what was done and freed.

    Raises `RunFolderError` for what is no run, `RunLocked` while another process writes in it.
    """
    read_record(folder)
    loaded = load_recipe(folder)
    with opened(folder, loaded):
        left = [path for path in folder.rglob(".*") if path.is_file() and LEFTOVER.match(path.name)]
        freed = sum(path.stat().st_size for path in left)
        for path in left:
            path.unlink()
        with Journal.open(folder / NAME) as journal:
            trimmed = journal.trim()
    return [
        f"{folder}: {len(left)} leftovers removed ({freed:,} bytes), the journal is {max(0, trimmed):,} bytes smaller"
    ]
