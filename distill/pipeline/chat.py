"""The `chat` command: a conversation with a run's student and its teacher side by side.

The conversation stays in memory; `/save FILE` writes it as a session. A local teacher's server is started at the first
line and stopped at the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from distill.compare.answers import answered
from distill.compare.metrics import Model
from distill.compare.results import NAMES
from distill.core import student_folder
from distill.core.console import Silent
from distill.core.jsonl import write_rows
from distill.engine.engine import Engine
from distill.engine.journal.store import NAME, Journal
from distill.errors import DistillError
from distill.pipeline.parts import load_recipe
from distill.pipeline.requirements import require_training_packages
from distill.run.endpoints import hire
from distill.run.remarks import student_remark
from distill.text.tokens import visible
from distill.types import Message, Request, Sampling, Session

HELP = (
    "/base on|off: ask the untrained base too · /system TEXT · /temp NUMBER · /clear: begin anew · /save FILE · /quit"
)


@dataclass(slots=True)
class Talk:
    """Both sides' conversations and endpoints."""

    ask: Callable[[Model, tuple[Message, ...], Sampling], str]
    sides: list[Model]
    sampling: Sampling
    system: str = ""
    turns: dict[Model, list[Message]] = field(default_factory=dict)

    def reply(self, line: str) -> Iterator[str]:
        """Lines to show for a line of the user: a command's effect, or every side's answer."""
        if line.startswith("/"):
            yield from self._obey(line)
            return
        for side in self.sides:
            turns = self.turns.setdefault(side, [])
            turns.append(Message("user", line))
            lead = [Message("system", self.system)] if self.system else []
            try:
                text = self.ask(side, (*lead, *turns), self.sampling)
            except DistillError as error:
                turns.pop()
                yield f"{NAMES[side]}: (no answer: {error})"
                continue
            turns.append(Message("assistant", text))
            yield f"{NAMES[side]}: {visible(text)}"

    def _obey(self, line: str) -> Iterator[str]:
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == "/base" and rest in ("on", "off"):
            self.sides = [side for side in self.sides if side != "base"] + (["base"] if rest == "on" else [])
            yield f"the base is {rest}"
        elif command == "/system":
            self.system = rest
            self.turns.clear()
            yield "begun anew under that system message" if rest else "begun anew without a system message"
        elif command == "/temp" and _is_number(rest):
            self.sampling = replace(self.sampling, temperature=float(rest))
            yield f"temperature {float(rest):g}"
        elif command == "/clear":
            self.turns.clear()
            yield "begun anew"
        elif command == "/save" and rest:
            yield self._save(Path(rest).expanduser())
        else:
            yield HELP

    def _save(self, path: Path) -> str:
        """Write one session per side, in the form of kept.jsonl."""
        lead = [Message("system", self.system)] if self.system else []
        sessions = [
            Session(f"chat-{side}", (*lead, *turns), {"answered_by": side}) for side, turns in self.turns.items()
        ]
        if not sessions:
            return "nothing was said yet"
        try:
            write_rows(path, sessions)
        except (OSError, DistillError) as error:
            return f"cannot write {path}: {error}"
        return f"{path}: {len(sessions)} conversations"


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) <= 5
    except ValueError:
        return False


def talk(run: Path, lines: Iterable[str]) -> Iterator[str]:
    """Lines to show for each line of the user; ends with the last one or at /quit. Raises `DistillError`."""
    require_training_packages("distill chat")
    from distill.models.in_process import trained_student, untrained_base

    loaded = load_recipe(run)
    teachers = hire(loaded, run)
    student = student_folder.current(run)
    providers: dict[str, Any] = {"student": trained_student(student), "base": untrained_base(student)}
    sides: list[Model] = ["student"]
    if teachers is not None and teachers.hired:
        providers["teacher"] = teachers.main.provider
        sides.append("teacher")
    teacher = loaded.main_teacher
    sampling = teacher.sampling.sampling() if teacher is not None else Sampling(temperature=0.7, max_tokens=256)
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        journal = ending.enter_context(Journal.open(folder / NAME))
        if teachers is not None:
            ending.callback(teachers.stop)
        conversation = Talk(partial(_answer, journal, providers), sides, sampling)
        yield from filter(None, [student_remark(run)])
        yield HELP
        for line in lines:
            if line.strip() == "/quit":
                return
            if line.strip():
                yield from conversation.reply(line.strip())


def _answer(
    journal: Journal, providers: Mapping[str, Any], side: Model, messages: tuple[Message, ...], sampling: Sampling
) -> str:
    """One answer of one side. Raises `DistillError` where there is none."""
    engine = Engine(journal, {side: providers[side]}, progress=Silent(), stage="chat")
    question = Request(role=side, messages=messages, sampling=sampling, replica=len(messages))
    (outcome,) = engine.run([("chat", partial(answered, question))])
    if outcome.value is None:
        reason = outcome.failures[-1].detail if outcome.failures else "unknown"
        raise DistillError(reason)
    return outcome.value.text
