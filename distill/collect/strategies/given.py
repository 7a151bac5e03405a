"""Uses the answer that a task already contains; sends no request."""

from __future__ import annotations

from random import Random

from distill.collect.sessions import TurnOptions, one_turn, opening
from distill.recipe import Asks
from distill.types import Completion, Failure, Flow, Sampling, Session, Task


class Given:
    """The task's own `meta.output` as the answer, as Alpaca has it: one completion wrote instruction, input and output.

    The answer is the teacher's of the expansion, so `meta.key` of the task, where it has one, is the session's key.
    """

    class Options(TurnOptions):
        """Options of `collect: {strategy: given}`."""

        @property
        def asks(self) -> Asks:
            """Nothing."""
            return Asks(0)

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options

    def flow(self, task: Task, rng: Random) -> Flow[Session | Failure]:
        """The session of a task, or a failure where it brings no output. `rng` draws `varied` forms."""
        yield from ()
        output = task.meta.get("output")
        if not isinstance(output, str) or not output.strip():
            detail = "the task has no meta.output to take as the answer"
            return Failure(key="", reason="no_output", detail=detail, transient=False)
        key = task.meta.get("key")
        is_cut = bool(task.meta.get("truncated"))
        answer = Completion(key=key if isinstance(key, str) else "", text=output, finish="length" if is_cut else "stop")
        prompt = opening(task, system=self.options.system, form=self.options.input, rng=rng)
        return one_turn(task, prompt, answer, strategy="given", handling=self.options.thoughts)
