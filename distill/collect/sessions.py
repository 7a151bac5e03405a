"""Helpers for answering strategies: renders a task as messages, and builds the session of its answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, Literal, TypeAlias

from distill import recipe
from distill.core import assets
from distill.text.references import carried
from distill.text.thinking import Handling, split_answer
from distill.types import Completion, Failure, Message, Session, Task

ROLE = "teacher"
InputForm: TypeAlias = Literal["below", "labelled", "before", "varied"]
"""Position of a task's input. `below`: after the instruction and a blank line. `labelled`: the same under a heading
"Input:". `before`: in front of the instruction. `varied`: one of seven forms with an input or six without, drawn for
each task, as Self-Instruct writes its training rows."""


class TurnOptions(recipe.BaseOptions):
    """Options of strategies whose sessions have one exchange."""

    system: str = ""
    """System message of every request and every session, so that the student learns under it. Empty: none."""
    input: InputForm = "below"
    """Position of a task's input: `below`, `labelled` or `before` the instruction; `varied` draws a form for each
    task, with or without an input."""
    thoughts: Handling = "separate"
    """How a reasoning teacher's thoughts are treated: `separate` (into meta), `strip`, or `keep` (learned)."""


_FORMS = {
    "below": "$instruction\n\n$input",
    "labelled": "$instruction\n\nInput:\n$input",
    "before": "$input\n\n$instruction",
}
VARIED = {True: "strategies/forms_with_input.txt", False: "strategies/forms_no_input.txt"}
"""Files of forms, separated by lines of three dashes, by whether the task has an input."""


def put(task: Task, form: InputForm = "below", *, rng: Random) -> str:
    """The task as a user would write it; `rng` is used for `varied` only."""
    if form == "varied":
        template = rng.choice(assets.load(VARIED[bool(task.input)]).split("\n---\n"))
        slots = {"input": task.input} if task.input else {}
        return assets.fill(template, instruction=task.instruction, **slots)
    if not task.input:
        return task.instruction
    return assets.fill(_FORMS[form], instruction=task.instruction, input=task.input)


def lead(system: str) -> tuple[Message, ...]:
    """The system message, where there is one."""
    return (Message("system", system),) if system else ()


def opening(task: Task, *, system: str = "", form: InputForm = "below", rng: Random) -> tuple[Message, ...]:
    """The messages before the answer in a session of one exchange: the system message, if any, and the task."""
    return (*lead(system), Message("user", put(task, form, rng=rng)))


def one_turn(
    task: Task,
    prompt: Iterable[Message],
    answer: Completion | Failure,
    *,
    strategy: str,
    handling: Handling,
    **more: Any,
) -> Session | Failure:
    """The session of one answer to a prompt, or the failure in its place.

    An empty answer, one that the endpoint withheld, and one that ends inside its thoughts is a failure; one cut at
    `max_tokens` is kept and marked `truncated`. `more` is passed to `session`.
    """
    if isinstance(answer, Failure):
        return answer
    prompt = tuple(prompt)
    reply = split_answer(answer, handling, prompt)
    if isinstance(reply, Failure):
        return reply
    messages = (*prompt, Message("assistant", reply.answer))
    keys, is_cut = ([answer.key] if answer.key else []), answer.finish == "length"
    return session(task, messages, strategy=strategy, keys=keys, truncated=is_cut, **more, thoughts=reply.thoughts)


def session(
    task: Task,
    messages: Iterable[Message],
    *,
    strategy: str,
    keys: Iterable[str],
    truncated: bool = False,
    labels: Iterable[str] = (),
    **more: Any,
) -> Session:
    """The session of a task; its meta includes the entries of `more` that are neither `None` nor empty."""
    meta: dict[str, Any] = {"task": task.id, "strategy": strategy, "keys": list(keys)}
    if "lineage" in task.meta:
        meta["lineage"] = task.meta["lineage"]
    meta |= carried(task.meta)
    meta |= {name: value for name, value in more.items() if value is not None and value not in ("", [], {})}
    return Session(task.id, tuple(messages), {**meta, "truncated": truncated, "labels": list(labels)})


def text_of(meta: Mapping[str, Any], *names: str) -> str:
    """The first of these entries that is a text and not blank, else the empty text."""
    return next((value for name in names if isinstance(value := meta.get(name), str) and value.strip()), "")
