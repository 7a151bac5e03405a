"""The stages in order, with the files of a run folder that each reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.recipe import Recipe


@dataclass(frozen=True, slots=True)
class StageFiles:
    """Files that a stage reads and writes; `student` is the folder of the current student."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    asks_teacher: bool = False


STAGES: Mapping[str, StageFiles] = {
    "expand": StageFiles((), ("tasks.jsonl", "refused.jsonl"), asks_teacher=True),
    "collect": StageFiles(("tasks.jsonl",), ("sessions.jsonl", "failures.jsonl", "rejected.jsonl"), asks_teacher=True),
    "curate": StageFiles(("sessions.jsonl",), ("kept.jsonl", "dropped.jsonl", "test.jsonl"), asks_teacher=True),
    "train": StageFiles(("kept.jsonl",), ("student",)),
    "compare": StageFiles(("test.jsonl", "kept.jsonl", "student"), ("answers.jsonl", "scores.json"), asks_teacher=True),
    "report": StageFiles(
        ("student", "scores.json", "answers.jsonl", "kept.jsonl", "dropped.jsonl", "test.jsonl", "tasks.jsonl"),
        ("report.html",),
    ),
}
"""In the order in which they run."""
FILES = {name.removesuffix(".jsonl"): name for name in STAGES["curate"].outputs}
"""Rows of a run that can be exported, and their files."""


def stages_of(recipe: Recipe) -> list[str]:
    """The stages of a recipe, in order; report is always among them."""
    has = {"report": True, "collect": recipe.collect is not None or bool(recipe.sources)}
    return [name for name in STAGES if has.get(name, getattr(recipe, name, None) is not None)]


def stage_that_writes(name: str) -> str:
    """The stage that writes a file of the run folder."""
    return next(stage for stage, files in STAGES.items() if name in files.outputs)


def run_named(name: str) -> Path | None:
    """The run of that name in the folder runs/, for advice; None where there is none."""
    run = Path("runs") / name
    return run if (run / "run.json").is_file() else None
