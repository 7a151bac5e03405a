"""Has the teacher answer each task once: one request, one session of one turn."""

from __future__ import annotations

from random import Random

from distill import recipe
from distill.types import Completion, Failure, Flow, Message, Request, Sampling, Session, Task

ROLE = "teacher"


class Answer:
    """One request a task to the teacher, with an optional system message."""

    class Options(recipe.Options):
        """Options of `collect: {strategy: answer}`."""

        system: str = ""
        """System message of every request, and of every session: the student learns under it. Empty: none."""

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options
        self.sampling = sampling or Sampling()

    def flow(self, task: Task, rng: Random) -> Flow[Session | Failure]:
        """The session of a task, or the failure that stands for it.

        An answer that the endpoint withheld (`finish` is `filtered`) is a failure; one cut at `max_tokens` is kept and
        marked `truncated`. `rng` is not used.
        """
        messages = self._messages(task)
        answer: Completion | Failure = yield Request(role=ROLE, messages=messages, sampling=self.sampling)
        if isinstance(answer, Failure):
            return answer
        if answer.finish == "filtered":
            return Failure(
                key=answer.key, reason="filtered", detail="the endpoint withheld the answer", transient=False
            )
        return Session(task.id, (*messages, Message("assistant", answer.text.strip())), _meta(task, answer))

    def _messages(self, task: Task) -> tuple[Message, ...]:
        asked = Message("user", f"{task.instruction}\n\n{task.input}" if task.input else task.instruction)
        return (Message("system", self.options.system), asked) if self.options.system else (asked,)


def _meta(task: Task, answer: Completion) -> dict[str, object]:
    meta: dict[str, object] = {"task": task.id, "strategy": "answer", "keys": [answer.key]}
    if "lineage" in task.meta:
        meta["lineage"] = task.meta["lineage"]
    return {**meta, "truncated": answer.finish == "length", "labels": []}
