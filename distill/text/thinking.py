"""Separates a reasoning model's thoughts from its answer, for all common endpoint formats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from distill.types import Completion, Failure

_TAG = "(?:think|thinking)"
_OPENS = re.compile(rf"^[ \t]*<{_TAG}>", re.IGNORECASE | re.MULTILINE)
_OPENS_HERE = re.compile(rf"[ \t]*<{_TAG}>", re.IGNORECASE)
_CLOSES = re.compile(rf"</{_TAG}>", re.IGNORECASE)
_CLOSES_ALONE = re.compile(rf"^[ \t]*</{_TAG}>|</{_TAG}>[ \t]*$", re.IGNORECASE | re.MULTILINE)
FIELDS = ("reasoning_content", "reasoning")
"""Where endpoints put thoughts beside the text of a message."""


@dataclass(frozen=True, slots=True)
class SplitAnswer:
    """An answer separated from the thoughts before it."""

    answer: str
    thoughts: str = ""
    is_open: bool = False
    """Whether the text ends inside a block of thoughts, so that there is no whole answer."""


def split_thoughts(answer: Completion) -> SplitAnswer:
    """Thoughts and answer of a completion.

    Thoughts are those that the endpoint reports beside the text, and blocks in the text that a tag opens at the start
    of a line. A closing tag without an opening one, at either end of a line, closes thoughts that began with the text,
    because some chat templates open the block in the prompt; if cut, such thoughts look like an answer.
    """
    beside = _beside(answer.raw)
    reply = in_text(answer.text)
    return SplitAnswer(reply.answer, "\n\n".join(piece for piece in (beside, reply.thoughts) if piece), reply.is_open)


def in_text(text: str) -> SplitAnswer:
    """Thoughts and answer of a text."""
    pieces: list[str] = []
    first, closing = _OPENS.search(text), _CLOSES_ALONE.search(text)
    if closing is not None and (first is None or closing.start() < first.start()):
        pieces.append(text[: closing.start()])
        text = text[closing.end() :]
    answer: list[str] = []
    end = 0
    while (opens := _OPENS_HERE.match(text, end) or _OPENS.search(text, end)) is not None:
        answer.append(text[end : opens.start()])
        closes = _CLOSES.search(text, opens.end())
        pieces.append(text[opens.end() : closes.start() if closes else len(text)])
        if closes is None:
            return SplitAnswer(_join(answer), _join(pieces), is_open=True)
        end = closes.end()
    return SplitAnswer(_join([*answer, text[end:]]), _join(pieces))


def _beside(raw: Mapping[str, Any]) -> str:
    """Thoughts that the endpoint reports beside the text; its JSON is foreign, so no shape is guaranteed."""
    choices = raw.get("choices")
    first = choices[0] if isinstance(choices, (list, tuple)) and choices else None
    message = first.get("message") if isinstance(first, Mapping) else None
    if not isinstance(message, Mapping):
        return ""
    texts = (message.get(name) for name in FIELDS)
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")


def _join(pieces: list[str]) -> str:
    texts = (piece.strip() for piece in pieces)
    return "\n\n".join(piece for piece in texts if piece)


Handling: TypeAlias = Literal["separate", "strip", "keep"]
"""`separate`: thoughts go to `meta.thoughts`, which training ignores. `strip`: they are dropped; the journal still has
them. `keep`: the student learns them, in `<think>` tags on lines of their own before the answer."""


def split_answer(answer: Completion, handling: Handling = "separate") -> SplitAnswer | Failure:
    """The answer and thoughts for a session, by `handling`; or a failure.

    A failure replaces an answer that the endpoint withheld (`filtered`), one that ends inside its thoughts
    (`open_thoughts`), and thoughts without an answer (`only_thoughts`); none of them is transient.
    """
    if answer.finish == "filtered":
        return _failure(answer, "filtered", "the endpoint withheld the answer")
    reply = split_thoughts(answer)
    if reply.is_open:
        return _failure(answer, "open_thoughts", f"the answer ends inside its thoughts (finish: {answer.finish})")
    if reply.thoughts and not reply.answer:
        return _failure(answer, "only_thoughts", f"thoughts without an answer (finish: {answer.finish})")
    if handling == "keep" and reply.thoughts:
        return SplitAnswer(f"<think>\n{reply.thoughts}\n</think>\n\n{reply.answer}")
    return SplitAnswer(reply.answer, reply.thoughts if handling == "separate" else "")


def _failure(answer: Completion, reason: str, detail: str) -> Failure:
    return Failure(key=answer.key, reason=reason, detail=detail, transient=False)
