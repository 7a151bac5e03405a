"""Decides what a session may use of an answer, and what becomes of the thoughts before it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from distill.reasoning import Said, parted
from distill.types import Completion, Failure

Handling: TypeAlias = Literal["separate", "strip", "keep"]
"""`separate`: thoughts go to `meta.thoughts`, where training does not see them. `strip`: they are dropped; the journal
still has them. `keep`: the student learns them, written `<think>`, a line each for the tags, in front of the answer."""


def taken(answer: Completion, handling: Handling = "separate") -> Said | Failure:
    """What a session may use of an answer, the text as `handling` wants it; or the failure that stands for it.

    A failure stands for an answer that the endpoint withheld (`filtered`), one that ends inside its thoughts
    (`open_thoughts`), and thoughts without an answer (`only_thoughts`); none of them may pass by asking again.
    """
    if answer.finish == "filtered":
        return _failure(answer, "filtered", "the endpoint withheld the answer")
    said = parted(answer)
    if said.is_open:
        return _failure(answer, "open_thoughts", f"the answer ends inside its thoughts (finish: {answer.finish})")
    if said.thoughts and not said.answer:
        return _failure(answer, "only_thoughts", f"thoughts without an answer (finish: {answer.finish})")
    if handling == "keep" and said.thoughts:
        return Said(f"<think>\n{said.thoughts}\n</think>\n\n{said.answer}")
    return Said(said.answer, said.thoughts if handling == "separate" else "")


def _failure(answer: Completion, reason: str, detail: str) -> Failure:
    return Failure(key=answer.key, reason=reason, detail=detail, transient=False)
