"""Stage train: kept.jsonl to student/; imports torch only when it runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from distill import recipe
from distill.core import console, processes, weights
from distill.core.extras import install
from distill.core.jsonl import read_sessions
from distill.core.processes import grow_in_place
from distill.core.student_folder import NEXT, STUDENT
from distill.errors import DistillError, MissingPackage, RecipeError
from distill.run import model_card, students
from distill.run.context import Context, stop_teacher
from distill.run.record import StageRecord, read_record
from distill.train.options import LoraOptions, TrainOptions
from distill.types import Session

REVISION = 1
"""To be raised with any change of what the stage writes for the same inputs and options."""


def options(context: Context) -> dict[str, Any]:
    """What of the recipe decides the student, by key."""
    student = context.recipe.student
    assert student is not None
    return {**students.deciding_options(context.recipe), "student.model sha256": weights.fingerprint(student.model)}


__all__ = ["REVISION", "LoraOptions", "TrainOptions", "masks", "options", "plan", "run", "train"]


def train(
    folder: Path,
    *,
    model: str,
    layers: int | None,
    prune_by: Literal["uniform", "block"] = "uniform",
    template: str,
    options: TrainOptions,
    seed: int,
    fresh: bool = False,
) -> dict[str, Any]:
    """Train a student on `folder/kept.jsonl` and leave it in `folder/student.next`; returns counts for run.json.

    `layers` is how many of the model's layers the student keeps, and `prune_by` how they are chosen; `fresh` starts
    over, whatever checkpoints there are. Raises `DistillError` for missing or unusable rows, `RunFolderError` for
    checkpoints of something else, `MissingPackage` without the training packages, `ModelError` for the model.
    """
    sessions = _sessions(folder)
    trainer = _room("loop")
    with console.progress("train", unit="steps") as bar:
        result = trainer.train(
            sessions,
            folder / NEXT,
            model=model,
            layers=layers,
            prune_by=prune_by,
            template=template,
            options=options,
            seed=seed,
            fresh=fresh,
            progress=bar,
            say=console.say,
            show=console.say_marked,
        )
    return asdict(result)


def plan(
    folder: Path, *, model: str, layers: int | None, template: str, options: TrainOptions, seed: int
) -> Iterator[str]:
    """What training on `folder/kept.jsonl` would be, by its rows and by one real pass; leaves nothing in the folder.

    Raises as `train` does.
    """
    lines: Iterator[str] = _room("plan").plan(
        _sessions(folder),
        model=model,
        layers=layers,
        template=template,
        options=options,
        seed=seed,
        say=console.say,
    )
    return lines


def masks(folder: Path, *, model: str, template: str, options: TrainOptions, count: int) -> None:
    """Check all rows of `folder/kept.jsonl` as training does, and show so many of them with what is trained marked."""
    for row in _room("plan").masks(
        _sessions(folder), model=model, template=template, options=options, count=count, say=console.say
    ):
        console.show_marked(row)


def _sessions(folder: Path) -> list[Session]:
    kept = folder / "kept.jsonl"
    sessions = read_sessions(kept) if kept.is_file() else []
    if not sessions:
        raise DistillError(f"{kept} holds no sessions to train on; run curate first, or loosen its rules")
    return sessions


def _room(name: str) -> Any:
    """A module of the room that needs torch."""
    grow_in_place()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises on a CPU kernel that is never used here
    try:
        return import_module(f"distill.train.{name}")
    except ImportError as error:
        raise MissingPackage(
            f"training needs {error.name or error}, which is not installed; type: {install('train')}"
        ) from error


def run(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage train; the student before stays in its place until this one is finished."""
    settings = settings_of(context.recipe)
    stop_teacher(context)
    counts = train(context.folder, **settings, fresh="train" in context.options.redo)
    if processes.is_first():
        _put_in_place(context.folder, record, counts)
    return counts


def _put_in_place(folder: Path, record: StageRecord, counts: Mapping[str, Any]) -> None:
    """Write down what made the student in `student.next`, and have it replace the one before."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(record.started)).total_seconds()
    ended = {"status": "done", "seconds": round(seconds, 2), "counts": counts}
    outputs = {STUDENT: students.sha256_of_next(folder)}
    info = students.account(folder, read_record(folder), {**asdict(record), **ended, "outputs": outputs})
    model_card.write(folder / NEXT / "README.md", folder, made=info)
    students.finish(folder, info)


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
