"""The stages that make sessions: expand, and collect with the recipe's sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import recipe, shelf
from distill.errors import RecipeError
from distill.recipe import Recipe
from distill.run import StageRecord
from distill.steps.asking import asking
from distill.steps.context import ACCEPTABLE, Context
from distill.strategies import STRATEGIES
from distill.types import Growth, Session, Task

if TYPE_CHECKING:
    from distill.collect import Chosen
    from distill.ingest import Source


def growth_of(context: Context) -> Growth:
    """The expansion that the recipe describes, at its beginning."""
    from distill.strategies.pool import load_seeds

    section = context.recipe.expand
    assert section is not None
    strategy = shelf.part(STRATEGIES, section.strategy, kind="strategy", allowed=context.allowed)
    options = _with_samplings(section.options, context.recipe)
    growth: Growth = strategy(
        options, seeds=load_seeds(Path(section.seeds)), seed=context.recipe.seed, target=section.tasks
    )
    return growth


def expanding(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage expand: seeds become tasks."""
    from distill import expand

    section = context.recipe.expand
    assert section is not None
    growth = growth_of(context)
    with asking(context, "expand", record, section.tasks) as engine:
        return expand.expand(context.folder, growth=growth, target=section.tasks, engine=engine)


def tasks_of(context: Context) -> list[Task]:
    """The tasks that collect has answered."""
    from distill.collect import load_tasks

    section = context.recipe.collect
    assert section is not None
    return load_tasks(Path(section.tasks) if section.tasks else context.folder / "tasks.jsonl")


def choice_of(context: Context) -> Callable[[Task], Chosen]:
    """Which teacher answers a task, and by which strategy."""
    from distill.collect import Chosen

    section, teachers = context.recipe.collect, context.teachers
    assert section is not None
    assert teachers is not None
    part = shelf.part(STRATEGIES, section.strategy, kind="strategy", allowed=context.allowed)
    options = _with_samplings(section.options, context.recipe)
    chosen = {
        one.name: Chosen(one.name, one.section.called, part(options, sampling=one.section.sampling.sampling()))
        for one in teachers
    }
    return lambda task: chosen[teachers.pick(task).name]


def _with_samplings(options: recipe.Options, loaded: Recipe) -> recipe.Options:
    """The options with `user_sampling` and `judge_sampling`, left out there, from those sections of the recipe."""
    given = {
        f"{role}_sampling": one.sampling
        for role, one in loaded.roles.items()
        if one.sampling != recipe.SamplingOptions() and getattr(options, f"{role}_sampling", one) is None
    }
    return options.model_copy(update=given)


def collecting(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage collect: tasks and sources become sessions."""
    from distill import collect

    imported, came = _ingest(context)
    section = context.recipe.collect
    if section is None:
        return came
    tasks = tasks_of(context)
    _require_apart(imported, tasks)
    with asking(context, "collect", record, len(tasks)) as engine:
        status, counts = collect.collect(
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
    return {**came, **counts, "sessions": len(imported) + counts["sessions"]}


def _ingest(context: Context) -> tuple[list[Session], Mapping[str, Any]]:
    """The sessions of the recipe's sources, and counts; where nothing is collected, they are sessions.jsonl."""
    loaded = context.recipe
    if not loaded.sources:
        return [], {}
    from distill import ingest

    sources = [_source_of(source, loaded) for source in loaded.sources]
    found, counts = ingest.ingest(context.folder, sources=sources, seed=loaded.seed, allowed=context.allowed)
    if loaded.collect is None:
        ingest.write(context.folder, found)
    return found, {**counts, "sessions": len(found)}


def _source_of(section: recipe.Source, loaded: Recipe) -> Source:
    from distill import ingest
    from distill.importers import Address

    splitter = None
    if section.max_tokens is not None:
        named = section.tokenizer or (loaded.student.model if loaded.student is not None else "")
        splitter = ingest.splitter(named, section.max_tokens)
    return ingest.Source(
        format=section.importer,
        address=Address(section.path or section.hub or "", section.split, section.revision),
        licence=section.licence,
        name=section.called,
        take=section.take,
        weight=section.weight,
        splitter=splitter,
    )


def _require_apart(imported: Sequence[Session], tasks: Sequence[Task]) -> None:
    names = {session.id for session in imported}
    if both := next((task.id for task in tasks if task.id in names), None):
        raise RecipeError(f"sources: the id {both} is also that of a task; give the source another `name`")
