"""Looks at the references of a recipe's given tasks and prompts before a model is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.compare.prompts import of_file
from distill.errors import RecipeError
from distill.formats.importers import load_tasks
from distill.recipe import CheckOptions, Recipe
from distill.text import references


def reference_warnings(recipe: Recipe) -> list[str]:
    """A line for each part that can check some of the given rows alone.

    Raises `RecipeError` where it can check none. Rows of `expand` and `sources` are not looked at.
    """
    parts = list(_parts(recipe))
    given = {kind: _given_rows(recipe, kind) for kind in dict.fromkeys(kind for *_, kind in parts)}
    return [line for where, options, kind in parts for line in _faults(where, options, given[kind])]


def _given_rows(recipe: Recipe, kind: str) -> Mapping[str, Mapping[str, Any]]:
    """What the rows of a given file have of references, by id; empty without a file."""
    if kind == "task" and recipe.collect is not None and recipe.collect.tasks is not None:
        return {task.id: task.meta for task in load_tasks(Path(recipe.collect.tasks))}
    if kind == "prompt" and recipe.compare is not None and recipe.compare.prompts is not None:
        return {prompt.id: prompt.last_solution for prompt in of_file(Path(recipe.compare.prompts))}
    return {}


def _parts(recipe: Recipe) -> Iterator[tuple[str, CheckOptions, str]]:
    """The parts that check answers: the name, the options, and the kind of rows."""
    if recipe.collect is not None and getattr(recipe.collect.options, "pick", "") == "check":
        yield "collect", recipe.collect.options, "task"
    for rule in recipe.curate or ():
        if isinstance(rule.options, CheckOptions) and not recipe.sources:
            yield f"curate.{rule.filter}", rule.options, "task"
    for metric in recipe.compare.metrics if recipe.compare is not None else ():
        if isinstance(metric.options, CheckOptions) and getattr(metric.options, "samples", 1) == 1:
            is_own = recipe.compare is not None and recipe.compare.prompts is None
            yield f"compare.metrics.{metric.metric}", metric.options, "task" if is_own else "prompt"


def _faults(where: str, options: CheckOptions, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    may_lack = getattr(options, "unreferenced", "drop") == "keep"
    faults = {
        id: references.fault(meta, options.default_check)
        for id, meta in rows.items()
        if references.raw(meta) is not None or not may_lack
    }
    faulty = {id: fault for id, fault in faults.items() if fault is not None}
    if not faulty:
        return
    id, fault = next(iter(faulty.items()))
    line = f"{where}: {len(faulty)} of {len(rows)} rows cannot be checked, the first {id}: {fault}"
    if len(faulty) == len(rows):
        raise RecipeError(line)
    yield f"warning: {line}"
