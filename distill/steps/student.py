"""The stages of the student: train, compare and report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill import console, shelf
from distill.engine.drive import Engine
from distill.metrics import METRICS
from distill.providers import Provider
from distill.run import StageRecord
from distill.steps.asking import account, engine_for
from distill.steps.context import Context, stop_teacher


def training(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage train."""
    from distill import train

    student, section = context.recipe.student, context.recipe.train
    assert student is not None
    assert section is not None
    stop_teacher(context)
    return train.train(
        context.folder,
        model=student.model,
        layers=student.prune.layers if student.prune is not None else None,
        template=student.template,
        options=section.options,
        seed=context.recipe.seed,
    )


def comparing(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage compare."""
    from distill import compare

    section, teachers = context.recipe.compare, context.teachers
    assert section is not None
    assert teachers is not None
    teacher = teachers.main.section
    metrics = [shelf.part(METRICS, name, kind="metric", allowed=context.allowed) for name in section.metrics]
    sampling = section.sampling if section.sampling is not None else teacher.sampling
    tallies: list[Engine] = []

    def engine(providers: Mapping[str, Provider], *, progress: console.Progress, local: bool) -> Engine:
        tallies.append(engine_for(context, "compare", progress, providers, local=local))
        return tallies[-1]

    try:
        return compare.compare(
            context.folder,
            engine=engine,
            journal=context.journal,
            metrics=[metric(metric.Options()) for metric in metrics],
            sampling=sampling.sampling(),
            seed=context.recipe.seed,
            teachers={one.name: one.provider for one in teachers},
            release_teacher=lambda: stop_teacher(context),
            teacher_weights=teacher.model if teacher.serve is not None and len(teachers.hired) == 1 else None,
        )
    finally:
        account(context, "compare", record, tallies)


def reporting(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage report."""
    from distill import report

    return report.report(context.folder, title=context.recipe.name)
