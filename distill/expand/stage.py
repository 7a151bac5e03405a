"""Stage expand: grows tasks with the teacher; writes tasks.jsonl, and refused.jsonl with reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.core import console, registry
from distill.core.jsonl import write_rows
from distill.engine import EngineStopped, GrowthResult
from distill.engine.engine import Engine
from distill.engine.providers import one_line
from distill.expand.pool import SeededOptions
from distill.expand.seeds import Seed, load_seeds
from distill.expand.strategies import STRATEGIES
from distill.expand.topic import OFF_TOPIC, Topic
from distill.run.context import Context, _with_samplings, asking, identity
from distill.run.decisive import flat, of_part
from distill.run.record import StageRecord
from distill.types import Growth, Task

REVISION = 2
"""Raise it with any change of the stage's output for the same inputs and options, shipped prompts included."""
MANY_OFF_TOPIC = 0.1
"""Share of the tasks above which a warning is printed if they are off the seeds' topic."""


def expand(
    folder: Path, *, growth: Growth, target: int, engine: Engine, seeds: Sequence[Seed] = ()
) -> Mapping[str, Any]:
    """Grow `target` tasks, write them and the refused candidates; returns the stage's counts.

    `seeds` are those from which the tasks are grown: tasks off their topic are counted, and reported if they are many.
    Raises what `Engine.grow` raises, after writing the tasks admitted so far, which begin the same list.
    """
    try:
        result = engine.grow(growth, target)
    except EngineStopped as stop:
        if stop.growth is not None:
            _write(folder, stop.growth.tasks, growth)
        raise
    _write(folder, result.tasks, growth)
    off_topic = Topic(seeds).far(task.instruction for task in result.tasks) if seeds else []
    _report_topic(off_topic, len(result.tasks))
    return {**_counts(growth, result), **({"off_topic": len(off_topic)} if off_topic else {})}


def _write(folder: Path, tasks: Sequence[Task], growth: Growth) -> None:
    """Write the admitted tasks, and the refused ones with the reason in `meta.refused`."""
    write_rows(folder / "refused.jsonl", getattr(growth, "refused", ()))
    write_rows(folder / "tasks.jsonl", tasks)


def _counts(growth: Growth, result: GrowthResult) -> dict[str, Any]:
    """`candidates` are the tasks and those rejected; `beyond_target` is the surplus of the last request."""
    rejected = dict(sorted(getattr(growth, "rejected", {}).items(), key=lambda item: (-item[1], item[0])))
    surplus = result.candidates - sum(rejected.values()) - len(result.tasks)
    if hasattr(growth, "rejected") and surplus > 0:
        rejected["beyond_target"] = surplus
    return {
        "seeds": getattr(growth, "seeds", 0),
        "requests": result.requests,
        "failed": len(result.failures) + len(result.errors),
        "candidates": result.candidates,
        "tasks": len(result.tasks),
        "rejected": rejected,
    }


def _report_topic(off_topic: Sequence[str], tasks: int) -> None:
    """Warn if many tasks are off the seeds' topic."""
    if len(off_topic) > MANY_OFF_TOPIC * tasks:
        console.warn(
            f"expand: {len(off_topic)} of {tasks} tasks ({len(off_topic) / tasks:.0%}) are far from every seed, such as"
            f' "{one_line(off_topic[0], 80)}"; to refuse such, --set expand.on_topic={OFF_TOPIC}'
        )


def options(context: Context) -> dict[str, Any]:
    """The recipe's values that determine the tasks, by key."""
    section = context.recipe.expand
    assert section is not None
    return {
        "seed": context.recipe.seed,
        **flat(section, "expand", files=context.recipe.files),
        **flat(section.options, "expand", files=context.recipe.files),
        **of_part("expand.strategy", section.strategy),
        **identity(context),
    }


def growth_of(context: Context) -> Growth:
    """The recipe's strategy, before its first request."""
    section = context.recipe.expand
    assert section is not None
    strategy = registry.part(STRATEGIES, section.strategy, kind="strategy", allowed=context.options.allowed)
    options = _with_samplings(section.options, context.recipe)
    growth: Growth = strategy(
        options, seeds=load_seeds(Path(section.seeds)), seed=context.recipe.seed, target=section.tasks
    )
    return growth


def run(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage expand: seeds become tasks."""
    section = context.recipe.expand
    assert section is not None
    growth = growth_of(context)
    is_seeded = isinstance(section.options, SeededOptions) and not context.options.stand_in
    seeds = load_seeds(Path(section.seeds)) if is_seeded else []
    with asking(context, "expand", record, section.tasks) as engine:
        return expand(context.folder, growth=growth, target=section.tasks, engine=engine, seeds=seeds)
