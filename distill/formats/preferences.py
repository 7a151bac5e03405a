"""Rows with a chosen and a rejected answer: Anthropic's HH, sets for DPO, and our own pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill.formats.json_rows import ForeignRow
from distill.formats.parsed_row import ParsedRow, conversation, conversation_turns
from distill.formats.single_turn import answer_of, question_of
from distill.formats.turns import (
    QUESTION_KEYS,
    MalformedRow,
    Turn,
    content_of,
    first_key,
    marked_turns,
    turns_of,
    with_system,
)
from distill.types import Message, Pair, Session

CHOSEN_KEYS = ("chosen", "chosen_response", "preferred_output")
REJECTED_KEYS = ("rejected", "rejected_response", "non_preferred_output")
BASE_KEYS = ("messages", "conversations", "conversation")
CHOSEN_SCORES = ("score_chosen", "chosen_score", "chosen_rating", "chosen-rating")
REJECTED_SCORES = ("score_rejected", "rejected_score", "rejected_rating", "rejected-rating")
"""Columns of the ratings by which such sets chose, as in UltraFeedback's."""


def preference(row: ForeignRow) -> Iterator[ParsedRow]:
    """Two answers to the same turns: each a whole conversation, its last turn, or a text.

    Without a chosen answer of its own, a row's own answer is the chosen one.
    """
    base, repairs = _base_turns(row)
    sides = [_side(row, keys, base) for keys in (CHOSEN_KEYS, REJECTED_KEYS)]
    roles = [side[-1].role if side else "" for side in sides]
    if roles[0] != roles[1]:
        raise MalformedRow("different_roles", f"the last turn is of the {roles[0]} or of the {roles[1]}")
    chosen, rejected = (conversation(row, side, repairs) for side in sides)
    if not chosen.is_answered or not rejected.is_answered:
        raise MalformedRow("no_answer", "found one answer; expected a chosen and a rejected one")
    if chosen.messages[:-1] != rejected.messages[:-1]:
        raise MalformedRow("prompts_differ", "the chosen and the rejected answer follow different turns")
    if chosen.messages == rejected.messages:
        raise MalformedRow("same_answers", "the chosen and the rejected answer are the same")
    yield replace(chosen, rejected=rejected.messages[-1], meta={**chosen.meta, **_scores(row.value)})


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """The two answers' ratings, where a row has both as numbers."""
    keys = (first_key(row, CHOSEN_SCORES), first_key(row, REJECTED_SCORES))
    scores = [row[key] for key in keys if key is not None and type(row[key]) in (int, float)]
    return {"score": scores[0], "rejected": {"score": scores[1]}} if len(scores) == 2 else {}


def pair_of(session: Session) -> Pair | None:
    """A pair itself; of a session of best_of, its answer and the worst of the other samples that scored lower."""
    if isinstance(session, Pair):
        return session
    score, others = session.meta.get("score"), session.meta.get("others") or ()
    worse = [one for one in others if None not in (score, one["score"]) and one["score"] < score]
    if not worse:
        return None
    worst = min(worse, key=lambda one: float(one["score"]))
    about = {name: worst[name] for name in ("key", "score", "truncated") if name in worst}
    meta = {key: value for key, value in session.meta.items() if key != "others"}
    rejected = Message("assistant", worst["text"])
    return Pair(session.id, session.messages, {**meta, "rejected": about}, rejected=rejected)


def answer_turns(value: Any, key: str) -> list[Turn]:
    """The turns of one answer: a text, a turn, or turns. Raises `MalformedRow`."""
    items = value if isinstance(value, list) else [value]
    if all(isinstance(item, Mapping) for item in items):
        return turns_of(items)
    text = content_of(value, f"`{key}`")
    return marked_turns(text) or [Turn("assistant", text)]


def _base_turns(row: ForeignRow) -> tuple[list[Turn], list[str]]:
    """The turns that a preference has beside its two answers, and the repairs."""
    nested = row.value.get("input")
    if isinstance(nested, Mapping) and "messages" in nested:  # OpenAI's
        return turns_of(nested["messages"]), []
    if first_key(row.value, BASE_KEYS) is not None:
        return conversation_turns(row, BASE_KEYS), []
    if first_key(row.value, QUESTION_KEYS) is None:
        return with_system(row.value, []), []
    turns, _, _, repairs = question_of(row)
    return turns if first_key(row.value, CHOSEN_KEYS) else [*turns, *answer_of(row)[0]], repairs


def _side(row: ForeignRow, keys: Sequence[str], base: Sequence[Turn]) -> list[Turn]:
    """The conversation that ends in one of the answers."""
    key = first_key(row.value, keys)
    if key is None:
        return list(base)
    turns = answer_turns(row.value[key], key)
    if all(turn.role == "assistant" for turn in turns):
        return [*(base[:-1] if base and base[-1].role == "assistant" else base), *turns]
    has_system = any(turn.role == "system" for turn in turns)
    return turns if has_system else [*(turn for turn in base if turn.role == "system"), *turns]
