"""One request per task, one session of one turn."""

from __future__ import annotations

from random import Random

from distill.collect.sessions import ROLE, TurnOptions, one_turn, opening
from distill.recipe import Asks
from distill.types import Completion, Failure, Flow, Request, Sampling, Session, Task


class Answer:
    """One request per task to the teacher, with an optional system message."""

    class Options(TurnOptions):
        """Options of `collect: {strategy: answer}`."""

        @property
        def asks(self) -> Asks:
            """One request."""
            return Asks()

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options
        self.sampling = sampling or Sampling()

    def flow(self, task: Task, rng: Random) -> Flow[Session | Failure]:
        """The session of a task, or the failure in its place; see `one_turn`. `rng` draws `varied` forms."""
        prompt = opening(task, system=self.options.system, form=self.options.input, rng=rng)
        answer: Completion | Failure = yield Request(role=ROLE, messages=prompt, sampling=self.sampling)
        return one_turn(task, prompt, answer, strategy="answer", handling=self.options.thoughts)
