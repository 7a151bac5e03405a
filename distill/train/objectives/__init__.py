"""What a student learns from: a file per objective, chosen by `train.objective.kind`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.types import Answer, Request, Session

if TYPE_CHECKING:
    from distill.train.dataset import Examples
    from distill.train.options import TrainSettings

OBJECTIVES = {
    "preference": "distill.train.objectives.preference:Preference",
    "sft": "distill.train.objectives.sft:Sft",
    "soft": "distill.train.objectives.soft:Soft",
    "on_policy": "distill.train.objectives.on_policy:OnPolicy",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A teacher elsewhere, which may score texts."""

    model: str
    identity: Any
    """What determines its answers, as JSON."""
    ask: Callable[[Sequence[Request]], Sequence[Answer]]
    """Answers requests of the role `teacher`, from the journal as far as it has them."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run has of its teachers' answers, and how it asks for more."""

    reply: Callable[[str], Mapping[str, Any] | None] = lambda key: None
    """The response body of an answer in the journal, by its key."""
    systems: Callable[[Sequence[str]], Sequence[str]] = lambda keys: ()
    """The system turns that the teacher was shown for the answers with these keys."""
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    """Teachers elsewhere, by name."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What an objective prepares itself from, before the model is loaded."""

    run: Path
    """The run's folder."""
    examples: Examples
    """Those that are trained on; a row is an index in them."""
    usable: Examples
    """These, and those held out."""
    sessions: Mapping[str, Session]
    """The kept sessions by id, held-out ones among them."""
    held_out: tuple[Session, ...]
    """Those that training is watched by."""
    settings: TrainSettings
    layers: Sequence[int] | None
    """Those of the base that the student keeps; None for all."""
    tokenizer: Any
    collected: Collected
    say: Callable[[str], None]
