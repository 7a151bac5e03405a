"""Rules that keep, drop or label a session and say why; and what of a session they look at."""

from __future__ import annotations

from typing import Literal

from distill import recipe
from distill.types import Session

FILTERS = {
    "empty": "distill.filters.empty:Empty",
    "exact_duplicate": "distill.filters.exact_duplicate:ExactDuplicate",
    "ifd": "distill.filters.ifd:Ifd",
    "judge": "distill.filters.judge:Judge",
    "length": "distill.filters.length:Length",
    "near_duplicate": "distill.filters.near_duplicate:NearDuplicate",
    "perplexity": "distill.filters.perplexity:Perplexity",
    "refusal": "distill.filters.refusal:Refusal",
    "truncated": "distill.filters.truncated:Truncated",
}


class AskingOptions(recipe.Options):
    """What every filter that asks a model can be told."""

    every_row: bool = False
    """Ask about rows too that another rule has dropped; else nothing is paid for them."""


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
