"""The stage `train`: kept.jsonl in, a student out. What needs torch is imported when it runs."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from distill import console
from distill.errors import DistillError, MissingPackage
from distill.rows import read_sessions
from distill.student.options import LoraOptions, TrainOptions

__all__ = ["LoraOptions", "TrainOptions", "train"]


def train(
    folder: Path,
    *,
    model: str,
    layers: int | None,
    prune_by: Literal["uniform", "block"] = "uniform",
    template: str,
    options: TrainOptions,
    seed: int,
) -> dict[str, Any]:
    """Train a student on `folder/kept.jsonl` and leave it in `folder/student`; returns counts for run.json.

    `layers` is how many of the model's layers the student keeps, and `prune_by` how they are chosen. Raises
    `DistillError` for missing or unusable rows, `MissingPackage` without the training packages, `ModelError` for the
    model.
    """
    kept = folder / "kept.jsonl"
    sessions = read_sessions(kept) if kept.is_file() else []
    if not sessions:
        raise DistillError(f"{kept} holds no sessions to train on; run curate first, or loosen its rules")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises on a CPU kernel that is never used here
    try:
        from distill.student import trainer
    except ImportError as error:
        raise MissingPackage(
            f"training needs {error.name or error}, which is not installed; type: pip install 'distill[train]'"
        ) from error
    with console.progress("train", unit="steps") as bar:
        result = trainer.train(
            sessions,
            folder / "student",
            model=model,
            layers=layers,
            prune_by=prune_by,
            template=template,
            options=options,
            seed=seed,
            progress=bar,
            say=console.say,
            show=console.say_marked,
        )
    return asdict(result)
