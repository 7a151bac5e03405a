"""What soft targets are made from, and the student that they are made for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from distill.models import chat_template
from distill.models.chat_template import IGNORED, Example
from distill.models.token_bytes import Spelling
from distill.train.mask_check import MaskRow
from distill.train.objectives import Collected
from distill.train.objectives.by_bytes import END, Piece, TeacherToken, mapped, vocabulary
from distill.train.objectives.soft_file import Origin, SoftTarget, joined
from distill.types import Session


@dataclass(frozen=True, slots=True)
class Source:
    """Where the targets of a training come from, and the student that they are for."""

    folder: Path
    """The run's; soft_targets.arrow lies there."""
    teachers: Mapping[str, str]
    """Models of the teachers on this machine, by name."""
    sessions: Mapping[str, Session]
    collected: Collected
    template: str
    tokenizer: Any
    train_on: chat_template.TrainOn
    k: int
    say: Callable[[str], None]


@dataclass(slots=True)
class Tally:
    """What is said about the targets."""

    lost: Counter[str]
    """Rows without targets, by reason."""
    unseen: int = 0
    """Rows whose teacher saw a system turn that the student does not see."""


class Student:
    """The student's answers as pieces of bytes, and its vocabulary by spelling."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.end = chat_template.end_ids(source.template, source.tokenizer)[0]
        self._spelling = Spelling(source.tokenizer)

    @cached_property
    def ids(self) -> dict[Piece, int]:
        """The id of each spelling."""
        return vocabulary(self.source.tokenizer, self.end)

    def answers(self, row: MaskRow) -> list[list[Piece]]:
        """The pieces of each trained answer."""
        return spelt_answers(row.example, self._spelling, self.end)

    def mapped(self, row: MaskRow, answers: Sequence[Sequence[TeacherToken]]) -> SoftTarget:
        """Targets of the row's answers from the teacher's tokens, answer by answer."""
        pairs = zip(answers, self.answers(row), strict=True)
        return joined([mapped(tokens, pieces, self.ids, self.source.k) for tokens, pieces in pairs])


def origin_of(row: MaskRow, teacher: str, train_on: chat_template.TrainOn) -> Origin:
    """Where the row's trained tokens stand."""
    answers = [at for at, one in enumerate(row.messages) if one.role == "assistant" and at not in row.unlearnt]
    runs = trained_runs(row.example)
    turns = np.repeat(answers if train_on == "all" else answers[-1:], [len(run) for run in runs])
    return Origin(row.id, teacher, turns.astype(np.int16), np.array([id_ for run in runs for id_ in run], np.int32))


def trained_runs(example: Example) -> list[list[int]]:
    """The ids of each trained answer."""
    return [list(run) for trained, run in groupby(example.labels, key=lambda one: one != IGNORED) if trained]


def spelt_answers(example: Example, spelling: Spelling, end: int) -> list[list[Piece]]:
    """The pieces of each run of trained tokens, with `END` for the end token."""
    return [
        [END if id_ == end else piece for id_, piece in zip(run, spelling.pieces(run), strict=True)]
        for run in trained_runs(example)
    ]
