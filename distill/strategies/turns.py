"""What strategies that answer tasks share: how a task is put, and what a session says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, Literal, TypeAlias

from distill import prompts
from distill.types import Message, Session, Task

ROLE = "teacher"
InputForm: TypeAlias = Literal["below", "labelled", "before", "varied"]
"""How a task's input is put. `below`: after the instruction and a blank line. `labelled`: the same under a heading
"Input:". `before`: in front of the instruction. `varied`: one of seven forms with an input or six without, drawn for
each task, as Self-Instruct writes its training rows."""

_FORMS = {
    "below": "$instruction\n\n$input",
    "labelled": "$instruction\n\nInput:\n$input",
    "before": "$input\n\n$instruction",
}
VARIED = {True: "strategies/forms_with_input.txt", False: "strategies/forms_no_input.txt"}
"""By whether the task has an input; forms are parted by lines of three dashes."""


def put(task: Task, form: InputForm = "below", *, rng: Random) -> str:
    """The task as a user would write it; `rng` is drawn from for `varied` only."""
    if form == "varied":
        template = rng.choice(prompts.load(VARIED[bool(task.input)]).split("\n---\n"))
        given = {"input": task.input} if task.input else {}
        return prompts.fill(template, instruction=task.instruction, **given)
    if not task.input:
        return task.instruction
    return prompts.fill(_FORMS[form], instruction=task.instruction, input=task.input)


def lead(system: str) -> tuple[Message, ...]:
    """The system message, where there is one."""
    return (Message("system", system),) if system else ()


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
    """The session of a task; of `more`, what is neither `None` nor empty is kept in its meta."""
    meta: dict[str, Any] = {"task": task.id, "strategy": strategy, "keys": list(keys)}
    if "lineage" in task.meta:
        meta["lineage"] = task.meta["lineage"]
    meta |= {name: value for name, value in more.items() if value is not None and value not in ("", [], {})}
    return Session(task.id, tuple(messages), {**meta, "truncated": truncated, "labels": list(labels)})


def text_of(meta: Mapping[str, Any], *names: str) -> str:
    """The first of these entries that is a text and not blank."""
    return next((value for name in names if isinstance(value := meta.get(name), str) and value.strip()), "")
