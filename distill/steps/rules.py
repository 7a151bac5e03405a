"""The stage that keeps or drops sessions, and whom its rules ask."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from distill import console, recipe, shelf
from distill.engine import Outcome
from distill.engine.drive import Engine
from distill.errors import RecipeError
from distill.filters import FILTERS
from distill.recipe import Recipe
from distill.run import StageRecord
from distill.steps.asking import account, engine_for
from distill.steps.context import ACCEPTABLE, BASE, Context, stop_teacher
from distill.types import Flow, Sampling


def curating(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage curate: every rule's verdict on every session."""
    from distill import curate

    section = context.recipe.collect or recipe.Collect(test=0)
    engines: list[Engine] = []
    try:
        counts = curate.curate(
            context.folder,
            filters=[(rule.filter, filter_of(context, rule)) for rule in context.recipe.curate or []],
            test=context.recipe.held_out,
            seed=context.recipe.seed,
            ask=partial(_ask_of_rows, context, engines),
            max_failed=section.max_failed,
            tell=record.counts.update,
        )
    finally:
        if engines:
            account(context, "curate", record, engines)
    record.detail = ACCEPTABLE if counts.get("retryable") else None
    return counts


def filter_of(context: Context, rule: recipe.Rule) -> Any:
    """The filter of one rule, with the judge's sampling where it asks a judge."""
    part = shelf.part(FILTERS, rule.filter, kind="filter", allowed=context.allowed)
    if getattr(part, "role", None) == "judge":
        return part(rule.options, sampling=judge_sampling(context.recipe))
    return part(rule.options)


def judge_sampling(loaded: Recipe) -> Sampling:
    """The judge's own; of a teacher who judges, only what makes its endpoint work."""
    if (judge := loaded.roles.get("judge")) is not None:
        return judge.sampling.sampling()
    teacher = loaded.main_teacher
    own = teacher.sampling.sampling() if teacher is not None else Sampling()
    return Sampling(extra_body=own.extra_body, reasoning_effort=own.reasoning_effort)


def roles_of_filters(loaded: Recipe, allowed: Collection[str] = ()) -> set[str]:
    """Whom the curation rules ask: `judge`, `base`."""
    parts = [shelf.part(FILTERS, rule.filter, kind="filter", allowed=allowed) for rule in loaded.curate or ()]
    return {part.role for part in parts if hasattr(part, "role")}


def _ask_of_rows(
    context: Context,
    engines: list[Engine],
    flows: Sequence[tuple[str, Callable[[], Flow[Any]]]],
    *,
    rule: str,
    role: str,
) -> Sequence[Outcome[Any]]:
    """Drive one rule's flows: the student's model in this process, anybody else as in collect."""
    with console.progress(f"curate: {rule}", len(flows)) as bar, asked_by_rule(context, rule, role) as provider:
        engines.append(engine_for(context, "curate", bar, {role: provider}, local=role == BASE))
        return engines[-1].run(flows)


@contextmanager
def asked_by_rule(context: Context, rule: str, role: str) -> Iterator[Any]:
    """Who answers a rule; weights in this process are let go at the end. Raises `RecipeError` where there is nobody."""
    if role != BASE:
        if context.teachers is None:
            raise RecipeError(f"curate: the filter {rule} asks a {role}, and the recipe has no `teacher` to play it")
        yield context.teachers.providers[role]
        return
    from distill.student.inprocess import local_model

    student = context.recipe.student
    if student is None:
        raise RecipeError(f"curate: the filter {rule} asks the student's model, and the recipe has no `student`")
    stop_teacher(context)
    provider = local_model(student.model, name=BASE, template=student.template)
    try:
        yield provider
    finally:
        provider.release()
