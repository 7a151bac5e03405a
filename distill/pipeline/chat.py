"""A conversation with a run's student and its teacher side by side; `distill.cli.chat` is its terminal.

The conversation stays in memory. A local server for the teacher starts at the first line and stops at the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from distill.collect.sessions import lead
from distill.compare.answers import answer_to
from distill.core import student_folder
from distill.core.console import Silent
from distill.engine.engine import Engine
from distill.engine.journal.store import NAME, Journal
from distill.engine.policy import BoundEndpoint
from distill.errors import DistillError
from distill.pipeline.origins import say_which
from distill.pipeline.parts import load_recipe
from distill.pipeline.requirements import require_training_packages
from distill.run.endpoints import teachers_of
from distill.types import Message, Model, Request, Sampling, Session


@dataclass(slots=True)
class Conversation:
    """The turns of each side, and what asks its endpoint."""

    ask: Callable[[Model, tuple[Message, ...], Sampling], str]
    sides: list[Model]
    sampling: Sampling
    system: str = ""
    turns: dict[Model, list[Message]] = field(default_factory=dict)

    def answers(self, line: str) -> Iterator[tuple[Model, str]]:
        """The answer of every side to a line, or why there is none; the line is then left out of its turns."""
        for side in self.sides:
            turns = self.turns.setdefault(side, [])
            turns.append(Message("user", line))
            try:
                text = self.ask(side, (*lead(self.system), *turns), self.sampling)
            except DistillError as error:
                turns.pop()
                yield side, f"(no answer: {error})"
            else:
                turns.append(Message("assistant", text))
                yield side, text

    def sessions(self) -> list[Session]:
        """One session per side, in the form of kept.jsonl."""
        return [
            Session(f"chat-{side}", (*lead(self.system), *turns), {"answered_by": side})
            for side, turns in self.turns.items()
        ]


@contextmanager
def opened(run: Path) -> Iterator[Conversation]:
    """A conversation with a run's student and its teacher; models are released at the end. Raises `DistillError`."""
    require_training_packages("distill chat")
    from distill.models.in_process import trained_student, untrained_base

    recipe = load_recipe(run)
    say_which(run, recipe)
    teachers = teachers_of(recipe, run)
    student = student_folder.current(run)
    providers: dict[str, Any] = {"student": trained_student(student), "base": untrained_base(student)}
    sides: list[Model] = ["student"]
    if teachers.all:
        providers["teacher"] = teachers.main.provider
        sides.append("teacher")
    teacher = recipe.main_teacher
    sampling = teacher.sampling.sampling() if teacher is not None else Sampling(temperature=0.7, max_tokens=256)
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        journal = ending.enter_context(Journal.open(folder / NAME))
        ending.callback(teachers.stop)
        yield Conversation(partial(_answer, journal, providers), sides, sampling)


def _answer(
    journal: Journal, providers: Mapping[str, Any], side: Model, messages: tuple[Message, ...], sampling: Sampling
) -> str:
    """One side's answer. Raises `DistillError` where there is none."""
    engine = Engine(journal, {side: BoundEndpoint(providers[side])}, progress=Silent(), stage="chat")
    question = Request(role=side, messages=messages, sampling=sampling, replica=len(messages))
    (outcome,) = engine.run([("chat", partial(answer_to, question))])
    if outcome.value is None:
        reason = outcome.failures[-1].detail if outcome.failures else "unknown"
        raise DistillError(reason)
    return outcome.value.text
