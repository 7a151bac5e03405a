"""The stages of the student: train, compare and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import console, model_card, processes, recipe, shelf, students
from distill.engine.drive import Engine
from distill.errors import RecipeError
from distill.metrics import METRICS
from distill.providers import Provider
from distill.run import StageRecord, read_record
from distill.steps.asking import account, engine_for, spent
from distill.steps.context import Context, stop_teacher
from distill.steps.rules import judge_sampling
from distill.teachers import RESPONDENTS
from distill.types import Sampling

if TYPE_CHECKING:
    from distill.comparing.asking import Engines


def training(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage train; the student before stays in its place until this one is finished."""
    from distill import train

    settings = settings_of(context.recipe)
    stop_teacher(context)
    counts = train.train(context.folder, **settings, fresh=context.fresh)
    if processes.is_first():
        _put_in_place(context.folder, record, counts)
    return counts


def _put_in_place(folder: Path, record: StageRecord, counts: Mapping[str, Any]) -> None:
    """Write down what made the student in `student.next`, and have it replace the one before."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(record.started)).total_seconds()
    ended = {"status": "done", "seconds": round(seconds, 2), "counts": counts}
    outputs = {students.STUDENT: students.sha256_of_next(folder)}
    told = students.account(folder, read_record(folder), {**asdict(record), **ended, "outputs": outputs})
    model_card.write(folder / students.NEXT / "README.md", folder, made=told)
    students.finish(folder, told)


def settings_of(loaded: recipe.Recipe) -> dict[str, Any]:
    """What of a recipe training is given. Raises `RecipeError` where it trains nothing."""
    student, section = loaded.student, loaded.train
    if student is None or section is None:
        raise RecipeError("the recipe has no section `train`; add one, with `student`")
    return {
        "model": student.model,
        "layers": student.prune.layers if student.prune is not None else None,
        "prune_by": student.prune.by if student.prune is not None else "uniform",
        "template": student.template,
        "options": section.options,
        "seed": loaded.seed,
    }


def comparing(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage compare."""
    tallies: list[Engine] = []

    def engine(providers: Mapping[str, Provider], *, progress: console.Progress, local: bool) -> Engine:
        tallies.append(engine_for(context, "compare", progress, providers, local=local))
        return tallies[-1]

    try:
        return compared(context, engine, usd=lambda: spent(context, "compare"))
    finally:
        account(context, "compare", record, tallies)


def compared(context: Context, engine: Engines, *, usd: Callable[[], float | None]) -> Mapping[str, Any]:
    """Compare as the recipe says. `usd` is called when nothing more is asked, and before anything is written."""
    from distill import compare

    section = context.recipe.compare
    assert section is not None
    metrics = [
        shelf.part(METRICS, one.metric, kind="metric", allowed=context.allowed)(one.options) for one in section.metrics
    ]
    return compare.compare(
        context.folder,
        engine=engine,
        journal=context.journal,
        metrics=metrics,
        sampling=_sampling(context.recipe),
        seed=context.recipe.seed,
        sides=_sides(context, section),
        prompts=Path(section.prompts) if section.prompts is not None else None,
        system=section.system,
        tasks=section.lm_eval,
        usd=usd,
    )


def _sampling(loaded: recipe.Recipe) -> Sampling:
    """How all models draw: as the section says, else as the teacher does."""
    teacher = loaded.main_teacher
    own = loaded.compare.sampling if loaded.compare is not None else None
    chosen = own or (teacher.sampling if teacher is not None else recipe.SamplingOptions())
    return chosen.sampling()


def _sides(context: Context, section: recipe.Compare) -> Any:
    """Who answers beside what was trained here."""
    from distill.compare import Sides

    hired = tuple(context.teachers.hired) if context.teachers is not None else ()
    others = context.teachers.others if context.teachers is not None else ()
    served = hired[0].section if len(hired) == 1 and hired[0].section.serve is not None else None
    return Sides(
        teachers={one.name: one.provider for one in hired},
        release_teacher=lambda: stop_teacher(context),
        teacher_weights=served.model if served is not None else None,
        endpoints={name: one.provider for one in others for name in RESPONDENTS if one.name == name},
        recorded={model: Path(path) for model, path in section.answers.items()},
        judge=_bench(context, section),
    )


def _bench(context: Context, section: recipe.Compare) -> Any:
    """The judge, where the section has one."""
    from distill.compare import Bench

    if section.judge is None or context.teachers is None:
        return None
    return Bench(context.teachers.providers["judge"], section.judge, judge_sampling(context.recipe))


def reporting(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage report."""
    from distill import report

    if students.is_student(student := students.current(context.folder)):
        model_card.write(student / "README.md", context.folder)
    return report.report(context.folder, title=context.recipe.name)
