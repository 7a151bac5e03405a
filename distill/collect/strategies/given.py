"""Uses the answer that a task already contains; sends no request."""

from __future__ import annotations

from random import Random

from distill.collect.sessions import TurnOptions, one_turn, opening, text_of
from distill.recipe import Asks
from distill.types import Completion, Failure, Flow, Sampling, Session, Task


class Given:
    """Takes the task's `meta.output` as the answer, as Alpaca does: instruction, input and output of one completion.

    The answer was written by expand's teacher, so the task's `meta.key`, if any, becomes the session's key.
    """

    class Options(TurnOptions):
        """Options of `collect: {strategy: given}`."""

        @property
        def asks(self) -> Asks:
            """No request."""
            return Asks(0)

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options

    def flow(self, task: Task, rng: Random) -> Flow[Session | Failure]:
        """The session of a task, or a failure where it has no output. `rng` draws `varied` forms."""
        yield from ()
        output = text_of(task.meta, "output")
        if not output:
            detail = "the task has no meta.output to take as the answer"
            return Failure(key="", reason="no_output", detail=detail, transient=False)
        is_cut = bool(task.meta.get("truncated"))
        answer = Completion(key=text_of(task.meta, "key"), text=output, finish="length" if is_cut else "stop")
        prompt = opening(task, system=self.options.system, form=self.options.input, rng=rng)
        return one_turn(task, prompt, answer, strategy="given", handling=self.options.thoughts)
