"""Rules that keep, drop or label a session and say why; and what of a session they look at."""

from __future__ import annotations

from typing import Literal

from distill.types import Session

FILTERS = {
    "empty": "distill.filters.empty:Empty",
    "exact_duplicate": "distill.filters.exact_duplicate:ExactDuplicate",
    "length": "distill.filters.length:Length",
    "near_duplicate": "distill.filters.near_duplicate:NearDuplicate",
    "refusal": "distill.filters.refusal:Refusal",
    "truncated": "distill.filters.truncated:Truncated",
}

Compared = Literal["prompt", "answer", "both"]
"""What duplicates are compared by: the first user message, the answer, or the two as one text."""


def prompt_of(session: Session) -> str:
    """The first user message; empty where there is none."""
    return next((message.content for message in session.messages if message.role == "user"), "")


def answers_of(session: Session) -> list[str]:
    """Everything that the teacher said, a text a turn."""
    return [message.content for message in session.messages if message.role == "assistant"]


def compared_text(session: Session, on: Compared) -> str:
    """The text of a session by which it is compared with others."""
    answer = "\n".join(answers_of(session))
    if on == "both":
        return f"{prompt_of(session)}\n{answer}"
    return prompt_of(session) if on == "prompt" else answer
