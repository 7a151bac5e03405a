"""Turns sessions into examples, token ids and loss mask, and says what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distill import chat
from distill.errors import DistillError
from distill.types import Session

_DRIFT_SAMPLE = 64


@dataclass(frozen=True, slots=True)
class Examples:
    """What is trained on."""

    ids: list[str]
    """Of the sessions, one an example."""
    examples: list[chat.Example]
    left_out: Counter[str]
    """How many sessions are `too_long`, how many `empty`."""

    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(example.input_ids) for example in self.examples]


def examples_of(sessions: Sequence[Session], template: str, tokenizer: Any, max_length: int) -> Examples:
    """The sessions' examples, but for those over `max_length` tokens and those without a token to train.

    Raises `DistillError` when none is left, or when a session does not fit the template.
    """
    found = Examples([], [], Counter())
    for session in sessions:
        example = _example(session, template, tokenizer)
        if len(example.input_ids) > max_length:
            found.left_out["too_long"] += 1
        elif not example.trained:
            found.left_out["empty"] += 1
        else:
            found.ids.append(session.id)
            found.examples.append(example)
    if not found.examples:
        raise DistillError(
            f"none of the {len(sessions)} sessions can be trained on: {found.left_out['too_long']} are longer than "
            f"train.max_length={max_length} tokens, {found.left_out['empty']} have no answer; raise it or collect more"
        )
    return found


def _example(session: Session, template: str, tokenizer: Any) -> chat.Example:
    try:
        return chat.encode(session.messages, template, tokenizer, truncated=bool(session.meta.get("truncated")))
    except DistillError as error:
        raise type(error)(f"session {session.id}: {error}") from error


def say_left_out(left_out: Counter[str], total: int, max_length: int, say: Callable[[str], None]) -> None:
    """Say what is not trained on, and why."""
    if left_out["too_long"]:
        say(f"{left_out['too_long']} of {total} sessions are longer than train.max_length={max_length} and left out")
    if left_out["empty"]:
        say(f"{left_out['empty']} of {total} sessions have an empty answer and are left out")


def say_drift(sessions: Sequence[Session], template: str, tokenizer: Any, say: Callable[[str], None]) -> None:
    """Say of the first sessions which ones `apply_chat_template` would give other ids."""
    sample = sessions[:_DRIFT_SAMPLE]
    drifting = [session.id for session in sample if chat.drifts(session.messages, template, tokenizer)]
    if drifting:
        say(
            f"{len(drifting)} of the first {len(sample)} sessions (such as {drifting[0]}) are trained as other tokens "
            "than apply_chat_template gives: they mention special tokens, or an answer begins with what merges"
        )
