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
from urllib.parse import urlsplit

from distill.collect.sessions import lead
from distill.compare.answers import answer_to
from distill.core import student_folder
from distill.core.console import Silent, money
from distill.core.weights import read_base
from distill.engine.budget import Budget, TokenPrice
from distill.engine.engine import Engine
from distill.engine.journal.store import NAME, Journal
from distill.engine.policy import BoundEndpoint
from distill.errors import DistillError
from distill.pipeline.origins import say_which
from distill.pipeline.parts import load_recipe
from distill.pipeline.requirements import require_training_packages
from distill.recipe import Recipe, Teacher
from distill.run.endpoints import teachers_of
from distill.run.record import read_record
from distill.types import Message, Model, Request, Sampling, Session


@dataclass(slots=True)
class Conversation:
    """The turns of each side, and what asks its endpoint."""

    ask: Callable[[Model, tuple[Message, ...], Sampling], str]
    sides: list[Model]
    sampling: Sampling
    system: str = ""
    turns: dict[Model, list[Message]] = field(default_factory=dict)
    available: tuple[Model, ...] = ()
    """The sides that can be asked."""
    budget: Budget = field(default_factory=lambda: Budget({}))

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
def opened(run: Path, *, spent_usd: float = 0.0) -> Iterator[Conversation]:
    """A conversation with a run's student and its teacher; models are released at the end. Raises `DistillError`.

    Its answers may cost what the run's stages, and earlier conversations (`spent_usd`), have left of the run's budget.
    """
    require_training_packages("distill chat")
    from distill.models.in_process import trained_student, untrained_base

    read_record(run)
    recipe = load_recipe(run)
    say_which(run, recipe)
    teachers = teachers_of(recipe, run)
    student = student_folder.current(run)
    providers: dict[Model, Any] = {"student": trained_student(student), "base": untrained_base(student)}
    sides: list[Model] = ["student"]
    if teachers.all:
        providers["teacher"] = teachers.main.provider
        sides.append("teacher")
    teacher = recipe.main_teacher
    sampling = teacher.sampling.sampling() if teacher is not None else Sampling(temperature=0.7, max_tokens=256)
    budget = _budget(recipe, run, spent_usd)
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        journal = ending.enter_context(Journal.open(folder / NAME))
        ending.callback(teachers.stop)
        ask = partial(_answer, journal, providers, budget)
        yield Conversation(ask, sides, sampling, available=tuple(providers), budget=budget)


def outlook(run: Path, *, spent_usd: float = 0.0) -> list[str]:
    """What `opened` would load, whom it would ask and at what price, a line each; nothing is loaded to know it.

    `spent_usd` as there. Raises `DistillError` where the run has no student, or its recipe cannot be used.
    """
    recipe = load_recipe(run)
    student = student_folder.current(run)
    megabytes = sum(file.stat().st_size for file in student.glob("*.safetensors")) / 1e6
    budget = _budget(recipe, run, spent_usd)
    left = max(0.0, (budget.cap_usd or 0.0) - budget.earlier_usd)
    return [
        f"Loads {read_base(student)['model']}, and the student's own {megabytes:,.0f} MB, into this machine's memory.",
        *([_asks(recipe.main_teacher)] if recipe.main_teacher is not None else []),
        *([f"{money(left)} of the budget of {money(budget.cap_usd)} are left."] if budget.cap_usd is not None else []),
    ]


def _asks(teacher: Teacher) -> str:
    if teacher.serve is not None:
        return f"The teacher, {teacher.model}, runs on this machine too, on a server of its own."
    host, most, price = urlsplit(teacher.base_url or "").hostname, teacher.sampling.max_tokens, teacher.price
    cost = f"of at most {most:,} tokens" if most else "of any length"
    if price is not None and most:
        cost += f" ({money(price.output * most / 1e6)})"
    return f"Each question goes to {teacher.model} at {host}, for an answer {cost}; the question is charged as well."


def _budget(recipe: Recipe, run: Path, spent_usd: float) -> Budget:
    """The run's cap, of which its stages have spent a part; models of this machine are free."""
    spent = spent_usd + sum(float(sent["usd"]) for sent in read_record(run).get("sent", {}).values())
    price = recipe.main_teacher.price if recipe.main_teacher is not None else None
    prices = dict.fromkeys(("student", "base"), TokenPrice(input=0, output=0))
    served = recipe.main_teacher is not None and recipe.main_teacher.serve is not None
    if price is not None or served:
        prices["teacher"] = TokenPrice(input=price.input, output=price.output) if price is not None else prices["base"]
    return Budget(prices, cap_usd=recipe.budget_usd, spent_usd=spent)


def _answer(
    journal: Journal,
    providers: Mapping[Model, Any],
    budget: Budget,
    side: Model,
    messages: tuple[Message, ...],
    sampling: Sampling,
) -> str:
    """One side's answer. Raises `DistillError` where there is none, or where it might cost more than is left."""
    engine = Engine(journal, {side: BoundEndpoint(providers[side])}, progress=Silent(), stage="chat", budget=budget)
    question = Request(role=side, messages=messages, sampling=sampling, replica=len(messages))
    (outcome,) = engine.run([("chat", partial(answer_to, question))])
    if outcome.value is None:
        reason = outcome.failures[-1].detail if outcome.failures else "unknown"
        raise DistillError(reason)
    return outcome.value.text
