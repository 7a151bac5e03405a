"""A second model plays the user in a conversation with the teacher (Ding et al., 2023, UltraChat)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.collect.dialogue import Turn, converse, dialogue_session, user_turn
from distill.collect.sessions import put, text_of
from distill.core import assets
from distill.recipe import Asks, BaseOptions, SamplingOptions
from distill.text.echoes import instructions
from distill.types import Completion, Failure, Flow, Message, Request, Sampling, Session, Task

USER = "user"
CLOSING = "[nothing more]"
"""The simulated user writes this when it has nothing left to ask."""


class UserSimulator:
    """A conversation between the role `user`, under a persona, and the teacher, which plays both without such a role.

    The user model sees the conversation with the roles swapped: its own turns are the assistant's. The conversation
    ends after a number of exchanges drawn from a range, or before a turn in which the user says that it is done, says
    thanks, repeats a question, or speaks as the assistant; `meta.ended` says which. A turn in which it writes both
    sides is cut after the user's (`meta.leaks`).
    """

    class Options(BaseOptions):
        """Options of `collect: {strategy: user_simulator}`."""

        min_rounds: Annotated[int, Field(ge=1, le=50)] = 3
        """Least number of exchanges drawn for a task (UltraChat: 3 to 7 on world knowledge, 2 to 4 on writing)."""
        max_rounds: Annotated[int, Field(ge=1, le=50)] = 7
        """Greatest number of exchanges drawn for a task."""
        opening: Literal["task", "simulated"] = "task"
        """The first turn: the task itself, or one written by the simulated user, for tasks that are topics."""
        personas: tuple[str, ...] = ()
        """Descriptions of the user, one drawn per task; a task's `meta.persona` takes precedence. Empty: ten shipped
        ones."""
        system: str = ""
        """System message of the teacher and of every session. Empty: none."""
        user_sampling: SamplingOptions | None = None
        """Sampling of the user's turns; that of the section `user`, else that of the teacher's answers."""

        @model_validator(mode="after")
        def _range(self) -> UserSimulator.Options:
            if self.min_rounds > self.max_rounds:
                raise ValueError(f"min_rounds {self.min_rounds} is above max_rounds {self.max_rounds}")
            return self

        @property
        def asks(self) -> Asks:
            """Two requests per exchange of the longest conversation, whose prompts contain it so far."""
            count, playing = self.max_rounds, self.user_sampling
            samplings = () if playing is None else (playing.sampling(),)
            return Asks(2 * count, 230 * count, count + 2 * count * (count - 1), (USER,), samplings)

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options
        self.sampling = sampling or Sampling()
        self._playing = options.user_sampling.sampling() if options.user_sampling is not None else self.sampling
        self._personas = options.personas or assets.load("strategies/personas.txt").splitlines()
        self._part = assets.load("strategies/user_simulator.txt")
        self._begin = Message("user", assets.load("strategies/user_simulator_begin.txt"))
        self._prompt_lines = instructions(self._part, self._begin.content)

    def flow(self, task: Task, rng: Random) -> Flow[Session | Failure]:
        """The conversation about a task, or the failure in its place. `rng` draws rounds, then the persona."""
        rounds = rng.randint(self.options.min_rounds, self.options.max_rounds)
        shipped_persona = rng.choice(self._personas)
        persona, topic = text_of(task.meta, "persona") or shipped_persona, put(task, rng=rng)
        part = assets.fill(self._part, persona=persona, topic=topic, closing=CLOSING)

        def ask_user(before: Sequence[Message]) -> Request:
            messages = (Message("system", part), self._begin, *swap_roles(before))
            return Request(role=USER, messages=messages, sampling=self._playing)

        def read_user(answer: Completion, before: Sequence[Message]) -> Turn:
            return user_turn(answer, before, closing=CLOSING, prompt_lines=self._prompt_lines)

        reply = yield from converse(
            rounds=rounds,
            ask_user=ask_user,
            read_user=read_user,
            system=self.options.system,
            sampling=self.sampling,
            opening=topic if self.options.opening == "task" else "",
        )
        if isinstance(reply, Failure):
            return reply
        return dialogue_session(
            task, reply, system=self.options.system, strategy="user_simulator", persona=persona, rounds=rounds
        )


def swap_roles(messages: Sequence[Message]) -> list[Message]:
    """The conversation with user and assistant swapped."""
    sides = {"user": "assistant", "assistant": "user"}
    return [Message(sides[message.role], message.content) for message in messages]
