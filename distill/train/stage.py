"""Stage train: kept.jsonl to student/; imports torch only when it runs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from distill import recipe
from distill.core import console, processes, registry, weights
from distill.core.extras import install
from distill.core.jsonl import read_sessions
from distill.core.processes import grow_in_place
from distill.core.student_folder import NEXT, STUDENT, current
from distill.engine.engine import Engine
from distill.engine.journal.store import NAME
from distill.engine.journal.viewing import behind
from distill.errors import DistillError, MissingPackage, RecipeError
from distill.run import model_card, students
from distill.run.context import Context, account, engine_for, stop_teacher
from distill.run.record import StageRecord, read_record
from distill.train.objectives import OBJECTIVES, Collected, Endpoint
from distill.train.objectives.sft import Sft
from distill.train.options import LoraOptions, TrainOptions, TrainSettings
from distill.types import Answer, Completion, Flow, Request, Session

REVISION = 2
"""To be raised when the stage writes something else for the same inputs and options."""


def options(context: Context) -> dict[str, Any]:
    """The recipe's options that affect the student, by key."""
    student = context.recipe.student
    assert student is not None
    decisive = {**students.deciding_options(context.recipe), "student.model sha256": weights.fingerprint(student.model)}
    if student.continues is not None:
        decisive[students.CONTINUES] = students.previous_sha256(context.folder, Path(student.continues))
    settings = settings_of(context.recipe)
    if context.recipe.train is not None and context.recipe.train.objective.kind != "sft":
        decisive |= {f"teacher {name} sha256": weights.fingerprint(one) for name, one in settings.teachers.items()}
    return decisive


__all__ = ["REVISION", "LoraOptions", "TrainOptions", "TrainSettings", "objective_of", "options", "run", "train"]


def run(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage train; the previous student stays in place until the new one is complete."""
    settings = settings_of(context.recipe)
    settings = replace(settings, objective=objective_of(context.recipe, allowed=context.options.allowed))
    stop_teacher(context)
    counts = train(
        context.folder, settings, fresh="train" in context.options.redo, collected=_collected(context, record)
    )
    if processes.is_first():
        _put_in_place(context.folder, record, counts)
    return counts


def _collected(context: Context, record: StageRecord) -> Collected:
    """The answers in the run's journal, and its teachers elsewhere."""

    def reply(key: str) -> Mapping[str, Any] | None:
        answer = context.journal.get(key)
        return answer.raw if isinstance(answer, Completion) else None

    def systems(keys: Sequence[str]) -> list[str]:
        turns = [turn for one in behind(context.folder / NAME, keys) for turn in one.request.get("messages", ())]
        return [turn["content"] for turn in turns if turn["role"] == "system"]

    engines: list[Engine] = []

    def ask(teacher: str, requests: Sequence[Request]) -> Sequence[Answer]:
        engines.append(engine_for(context, "train", console.Silent(), context.teachers.of_roles(())))
        try:
            return _answers(engines[-1], teacher, requests)
        finally:
            account(context, "train", record, engines)

    elsewhere = [one for one in context.teachers if one.section.base_url is not None]
    return Collected(
        reply,
        systems,
        {
            one.section.display_name: Endpoint(one.section.model, asdict(one.provider.endpoint), partial(ask, one.name))
            for one in elsewhere
        },
    )


def _answers(engine: Engine, teacher: str, requests: Sequence[Request]) -> list[Answer]:
    """The answers of a teacher, by its name in the engine; from the journal as far as it has them."""

    def flow(request: Request) -> Flow[Answer]:
        answer: Answer = yield request
        return answer

    flows = [(f"row {number}", partial(flow, one)) for number, one in enumerate(requests, start=1)]
    return [one.value for one in engine.run(flows, choose=lambda flow, role: teacher) if one.value is not None]


def train(
    folder: Path,
    settings: TrainSettings,
    *,
    fresh: bool = False,
    collected: Collected | None = None,
) -> dict[str, Any]:
    """Train a student on `folder/kept.jsonl` into `folder/student.next`; returns counts for run.json.

    `fresh` ignores existing checkpoints; `collected` is what the run has of its teachers' answers. Raises
    `DistillError` for missing or unusable rows, `RunFolderError` for checkpoints of another run, `MissingPackage`
    without the training packages, `ModelError` for the model.
    """
    sessions = kept_sessions(folder)
    with training_packages():
        from distill.train import loop
    with console.progress("train", unit="steps") as bar:
        result = loop.train(
            sessions,
            folder / NEXT,
            settings,
            fresh=fresh,
            progress=bar,
            say=console.say,
            show=console.say_marked,
            collected=collected,
        )
    return asdict(result)


def try_model(sessions: Sequence[Session], settings: TrainSettings) -> str:
    """Load the model, try it on these sessions, and free it; returns the self-check's line. Raises as `train`."""
    with training_packages():
        from distill.train import loop
    return loop.try_model(sessions, settings, say=console.say)


def kept_sessions(folder: Path) -> list[Session]:
    """The rows of kept.jsonl. Raises `DistillError` where there are none."""
    path = folder / "kept.jsonl"
    sessions = read_sessions(path) if path.is_file() else []
    if not sessions:
        raise DistillError(f"{path} holds no sessions to train on; run curate first, or loosen its rules")
    return sessions


@contextmanager
def training_packages() -> Iterator[None]:
    """Prepare the process for torch; an `ImportError` within the block becomes `MissingPackage`."""
    grow_in_place()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # advice on a CPU kernel that is never used here
    try:
        yield
    except ImportError as error:
        raise MissingPackage(
            f"training needs {error.name or error}, which is not installed; type: {install('train')}"
        ) from error


def _put_in_place(folder: Path, record: StageRecord, counts: Mapping[str, Any]) -> None:
    """Record how the student in `student.next` was made, and move it into place."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(record.started)).total_seconds()
    ended = {"status": "done", "seconds": round(seconds, 2), "counts": counts}
    outputs = {STUDENT: students.sha256_of_next(folder)}
    info = students.account(folder, read_record(folder), {**asdict(record), **ended, "outputs": outputs})
    model_card.write(folder / NEXT / "README.md", folder, training=info)
    students.finish(folder, info)


def objective_of(loaded: recipe.Recipe, *, allowed: Collection[str] = ()) -> Sft:
    """The objective of a recipe with a section `train`; `allowed` are packages whose code it may name.

    Raises `RecipeError` where it does not suit the recipe.
    """
    assert loaded.train is not None
    section = loaded.train.objective
    objective: Sft = registry.part(OBJECTIVES, section.kind, kind="objective", allowed=allowed)(section.options)
    if fault := objective.fault(loaded):
        raise RecipeError(f"train.objective: {fault}")
    return objective


def settings_of(loaded: recipe.Recipe) -> TrainSettings:
    """The training settings of a recipe without its objective. Raises `RecipeError` where it has no section `train`."""
    student, section = loaded.student, loaded.train
    if student is None or section is None:
        raise RecipeError("the recipe has no section `train`; add one, with `student`")
    assert isinstance(section.options, TrainOptions)
    return TrainSettings(
        model=student.model,
        layers=student.prune.layers if student.prune is not None else None,
        prune_by=student.prune.by if student.prune is not None else "uniform",
        template=student.template,
        options=section.options,
        seed=loaded.seed,
        teachers={one.display_name: one.model for one in loaded.teachers if one.serve is not None},
        start=current(Path(student.continues)) if student.continues is not None else None,
    )
