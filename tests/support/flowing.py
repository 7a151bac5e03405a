"""Plays a strategy's flow against a function from request to answer, as the engine would."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

from distill.types import Completion, Failure, Request, Task


def play(strategy: Any, task: Task, answer: Callable[[Request], Any], *, seed: int = 0) -> tuple[Any, list[Request]]:
    """What the flow returns, and all that it asked. A text is an answer that stopped; keys are k1, k2 … as asked."""
    flow, asked, numbers, sent = strategy.flow(task, Random(seed)), [], count(1), None

    def answered(request: Request) -> Completion | Failure:
        asked.append(request)
        said, key = answer(request), f"k{next(numbers)}"
        return Completion(key=key, text=said, finish="stop") if isinstance(said, str) else said

    while True:
        try:
            wanted = flow.send(sent)
        except StopIteration as end:
            return end.value, asked
        sent = answered(wanted) if isinstance(wanted, Request) else tuple(answered(each) for each in wanted)


def cut(text: str, key: str = "cut") -> Completion:
    """An answer that was cut at max_tokens."""
    return Completion(key=key, text=text, finish="length")


def lost(*, transient: bool) -> Failure:
    """A request without an answer."""
    return Failure(key="f", reason="http_503" if transient else "http_400", detail="no", transient=transient)


def well_formed(session: Any) -> bool:
    """Whether the turns alternate after an optional system message, from the user's to the assistant's."""
    roles = [message.role for message in session.messages]
    roles = roles[1:] if roles[0] == "system" else roles
    return (
        roles == ["user", "assistant"] * (len(roles) // 2)
        and len(roles) > 0
        and all(message.content.strip() for message in session.messages)
    )
