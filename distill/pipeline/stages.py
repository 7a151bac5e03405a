"""Table of stages: function, input and output files, and options that make each one stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distill.collect import stage as collect
from distill.compare import stage as compare
from distill.curate import stage as curate
from distill.expand import stage as expand
from distill.report import stage as report
from distill.run.context import Context
from distill.run.record import StageRecord
from distill.train import stage as train


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage as the pipeline sees it."""

    work: Callable[[Context, StageRecord], Mapping[str, Any]]
    options: Callable[[Context], dict[str, Any]]
    """What of the recipe decides the stage's outputs, by key, defaults left out."""
    revision: int
    """Of the stage's code: raised with any change of what it writes for the same inputs and options."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    teacher: bool = False
    """Whether the stage asks the teacher."""


PIPELINE: Mapping[str, Stage] = {
    "expand": Stage(
        expand.run,
        expand.options,
        expand.REVISION,
        inputs=(),
        outputs=("tasks.jsonl", "refused.jsonl"),
        teacher=True,
    ),
    "collect": Stage(
        collect.run,
        collect.options,
        collect.REVISION,
        inputs=("tasks.jsonl",),
        outputs=("sessions.jsonl", "failures.jsonl", "rejected.jsonl"),
        teacher=True,
    ),
    "curate": Stage(
        curate.run,
        curate.options,
        curate.REVISION,
        inputs=("sessions.jsonl",),
        outputs=("kept.jsonl", "dropped.jsonl", "test.jsonl"),
        teacher=True,
    ),
    "train": Stage(train.run, train.options, train.REVISION, inputs=("kept.jsonl",), outputs=("student",)),
    "compare": Stage(
        compare.run,
        compare.options,
        compare.REVISION,
        inputs=("test.jsonl", "kept.jsonl", "student"),
        outputs=("answers.jsonl", "scores.json"),
        teacher=True,
    ),
    "report": Stage(
        report.run,
        report.options,
        report.REVISION,
        inputs=("student", "scores.json", "answers.jsonl", "kept.jsonl", "dropped.jsonl", "test.jsonl", "tasks.jsonl"),
        outputs=("report.html",),
    ),
}
