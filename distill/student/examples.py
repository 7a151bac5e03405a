"""Turns sessions into examples, token ids and loss mask, and says what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from distill import chat
from distill.errors import DistillError
from distill.types import Session

_DRIFT_SAMPLE = 64


def examples_of(
    sessions: Sequence[Session], template: str, tokenizer: Any, max_length: int
) -> tuple[list[chat.Example], Counter[str]]:
    """The examples that can be trained on, and how many sessions are `too_long` or `empty`.

    Raises `DistillError` when no example is left, or when a session does not fit the template.
    """
    examples, left_out = [], Counter[str]()
    for session in sessions:
        example = _example(session, template, tokenizer)
        if len(example.input_ids) > max_length:
            left_out["too_long"] += 1
        elif not example.trained:
            left_out["empty"] += 1
        else:
            examples.append(example)
    if not examples:
        raise DistillError(
            f"none of the {len(sessions)} sessions can be trained on: {left_out['too_long']} are longer than "
            f"train.max_length={max_length} tokens, {left_out['empty']} have no answer; raise it or collect more"
        )
    return examples, left_out


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
