"""The stage `train`: kept.jsonl in, a student out. What needs torch is imported when it runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from distill import console
from distill.errors import DistillError, MissingPackage
from distill.extras import install
from distill.rows import read_sessions
from distill.student.allocator import grow_in_place
from distill.student.options import LoraOptions, TrainOptions
from distill.students import NEXT
from distill.types import Session

__all__ = ["LoraOptions", "TrainOptions", "masks", "plan", "train"]


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
    trainer = _room("trainer")
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
    lines: Iterator[str] = _room("preflight").plan(
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
    for row in _room("preflight").masks(
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
        return import_module(f"distill.student.{name}")
    except ImportError as error:
        raise MissingPackage(
            f"training needs {error.name or error}, which is not installed; type: {install('train')}"
        ) from error
