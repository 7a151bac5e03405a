"""What the stages of one invocation share, and what a stage is to the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.journal import Journal
from distill.ledger import Sent
from distill.recipe import Recipe
from distill.run import StageRecord
from distill.teachers import Teachers

BASE = "base"
"""The role of the student's model before training."""
ACCEPTABLE = "failures within collect.max_failed"


@dataclass(slots=True)
class Context:
    """What the stages of one invocation share."""

    folder: Path
    recipe: Recipe
    journal: Journal
    teachers: Teachers | None
    """A local one starts its server at the first request."""
    allowed: Collection[str] = ()
    retry_failed: bool = False
    accept_partial: bool = False
    wait: bool = True
    """Whether to wait for a provider's batches."""
    fresh: bool = False
    """Whether training starts over, whatever checkpoints there are."""
    lost: Mapping[str, Sent] = field(default_factory=dict)
    """By stage, sends that are in no journal any more, and stay spent."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage as the pipeline sees it."""

    work: Callable[[Context, StageRecord], Mapping[str, Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...]
    options: Callable[[Context], Any]
    """What of the recipe decides the stage's outputs."""
    teacher: bool = False
    """Whether the stage asks the teacher."""
    prompts: str | None = None
    """A shipped file or folder that the stage reads."""


def serves_here(loaded: Recipe) -> bool:
    """Whether a teacher is a model that this process starts, which needs torch."""
    others = (loaded.roles | loaded.respondents).values()
    return any(one.serve == "transformers" for one in (*loaded.teachers, *others))


def compares_here(loaded: Recipe) -> bool:
    """Whether compare asks a model that this process loads: the student or its base."""
    section = loaded.compare
    return section is not None and any(
        getattr(section, side) is None and side not in section.answers for side in ("student", "base")
    )


def stop_teacher(context: Context) -> None:
    """Stop servers of ours; they start again at the next request."""
    if context.teachers is not None:
        context.teachers.stop()
