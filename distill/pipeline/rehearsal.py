"""Runs a stage on copies of its inputs with an engine that sends nothing: which questions would it ask?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from distill.core import console, student_folder
from distill.engine import EngineStopped
from distill.engine.journal.keys import Question
from distill.errors import StageIncomplete
from distill.pipeline.stages import PIPELINE
from distill.run.context import Context
from distill.run.layout import STAGES
from distill.run.record import StageRecord

PREFIX = ".rehearsal-"
"""Of the folders within a run in which stages are rehearsed."""
Miss: TypeAlias = tuple[str, str, Question]
"""A question without an answer in the journal, after the asking part of its stage and its flow's name."""


def rehearse(stage: str, context: Context, folder: Path, *, answers: Mapping[str, str] | None = None) -> list[Miss]:
    """Run a stage in `folder`, without sources and benchmarks; returns the first questions that would be sent.

    Inputs that are not in `folder` are linked from the run. With `answers`, files of recorded answers by model, compare
    loads no student. Raises what the stage raises.
    """
    for name in STAGES[stage].inputs:
        if not (answers is not None and name == student_folder.STUDENT) and not (folder / name).exists():
            _provide(context.folder, name, folder / name)
    misses: list[Miss] = []
    compare = context.recipe.compare
    if compare is not None:
        compare = compare.model_copy(update={"lm_eval": None, "answers": {**compare.answers, **(answers or {})}})
    apart = replace(
        context,
        folder=folder,
        recipe=context.recipe.model_copy(update={"sources": [], "compare": compare}),
        options=replace(context.options, retry_failed=False),
        on_miss=lambda part, flow, question: misses.append((part, flow, question)),
    )
    with console.silenced(observers=False), suppress(EngineStopped, StageIncomplete):
        PIPELINE[stage].run(apart, StageRecord())
    return misses


def _provide(run: Path, name: str, target: Path) -> None:
    path = student_folder.current(run) if name == student_folder.STUDENT else run / name
    if path.is_dir():
        shutil.copytree(path, target, copy_function=_link)
    elif path.exists():
        _link(str(path), str(target))


def _link(source: str, target: str) -> None:
    """A hard link, or a copy on another disk: a symbolic link out of a folder is refused, by Windows too."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
