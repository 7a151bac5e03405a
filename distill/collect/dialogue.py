"""Conversation between a simulated user and the teacher; detects a user model that leaves its role."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from distill.collect.sessions import ROLE, lead, session
from distill.text.echoes import is_echo, is_repeated, repeats_prompt
from distill.text.thinking import split_answer
from distill.text.wrappers import strip_quotes
from distill.types import Answer, Completion, Failure, Flow, Message, Request, Sampling, Session, Task

FAREWELL_WORDS = 14
"""Most words of a farewell; a longer turn has other content."""

_SIDE = "user|human|person|customer|client|visitor|guest|assistant|ai|ai assistant|chatbot|bot|helper|system"
_LABEL = re.compile(
    rf"(?:^[ \t>*_#]*\[?(?:{_SIDE})\]?[*_ \t]*[:\uff1a]|^[ \t>*_#]*\[(?:{_SIDE})\]|<\|[^|>\n]{{1,40}}\|>)[*_ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_LIKE_ASSISTANT = re.compile(
    r"\bas an? (?:ai(?=,| language| model| assistant| i\b)|(?:large )?language model|virtual assistant)"
    r"|\bi(?:'m|\u2019m| am) an ai\b"
    r"|\bhow (?:can|may) i (?:help|assist) you\b|\b(?:i can|i'll|i will|happy to|glad to|here to) (?:help|assist) you\b"
    r"|\bi(?:'m|\u2019m| am)? (?:here|happy|glad|able) to (?:help|assist)\b|\blet me know if you (?:have|need|would)\b"
    r"|\b(?:feel free to|don't hesitate to) (?:ask|reach|contact)\b|\bis there anything else (?:i|you)\b"
    r"|\bi hope (?:this|that) helps\b|^(?:you(?:'|\u2019)?re|you are) (?:very |most )?welcome\b"
    r"|^(?:certainly|sure|of course|absolutely)[!,.] (?:here|i can|i'd|let me)",
    re.IGNORECASE,
)
_FAREWELL = re.compile(
    r"\b(?:thanks|thank you|thx|cheers|much appreciated|appreciate it|good ?bye|bye|see you|take care|have a"
    r" (?:nice|good|great|lovely)|that(?:'s|\u2019s| is) all|that(?:'s|\u2019s| is) everything)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Turn:
    """A simulated user's turn."""

    text: str
    """Empty when the conversation ends here."""
    ended: str | None = None
    """Why it ends before this turn."""
    leak: str | None = None
    """`cut`: the turn was cut where another speaker's begins; `answered`: the user spoke as the assistant."""


@dataclass(slots=True)
class Dialogue:
    """A conversation in progress."""

    messages: list[Message] = field(default_factory=list)
    """Alternating, the user first, the assistant last."""
    keys: list[str] = field(default_factory=list)
    """Keys of all answers in the conversation, in order."""
    ended: str = "rounds"
    """Why it ends: `rounds` after the last round, else the reason given by `user_turn` or `converse`."""
    truncated: bool = False
    """Whether the last answer is truncated; no other can be."""
    leaks: list[str] = field(default_factory=list)


Ask: TypeAlias = Callable[[Sequence[Message]], Request]
"""Makes the next request from the conversation so far."""
Read: TypeAlias = Callable[[Completion, Sequence[Message]], Turn]


def converse(
    *, rounds: int, ask_user: Ask, read_user: Read, system: str, sampling: Sampling, opening: str = ""
) -> Flow[Dialogue | Failure]:
    """Up to `rounds` exchanges, each a turn of the user and the teacher's answer; at least one, or a failure.

    The teacher answers under `system`. An `opening` is the user's first turn, and is not requested. A transient failure
    is returned, so that a later run replays the exchanges before it; a permanent failure or an unusable turn ends the
    dialogue before that exchange.
    """
    reply = Dialogue()
    for number in range(rounds):
        turn, key = Turn(opening), ""
        if number or not opening:
            user_answer: Answer = yield ask_user(reply.messages)
            if isinstance(user_answer, Failure):
                return _give_up(reply, user_answer)
            turn, key = read_user(user_answer, reply.messages), user_answer.key
        reply.leaks += [turn.leak] if turn.leak else []
        if turn.ended is not None:
            reply.ended = turn.ended
            break
        messages = [*reply.messages, Message("user", turn.text)]
        answer: Answer = yield Request(role=ROLE, messages=(*lead(system), *messages), sampling=sampling)
        if isinstance(answer, Failure):
            return _give_up(reply, answer)
        split = split_answer(answer, "strip", messages)
        if isinstance(split, Failure):
            return _give_up(reply, split)
        reply.messages[:] = [*messages, Message("assistant", split.answer)]
        reply.keys += [key, answer.key] if key else [answer.key]
        if answer.finish == "length":
            reply.truncated, reply.ended = True, "cut_answer"
            break
    if reply.messages:
        return reply
    detail = f"no exchange took place; the conversation ended with: {reply.ended}"
    return Failure(key="", reason="no_exchange", detail=detail, transient=False)


def dialogue_session(task: Task, reply: Dialogue, *, system: str, strategy: str, **more: Any) -> Session:
    """The session of a dialogue under `system`; `more` is for its meta."""
    return session(
        task,
        [*lead(system), *reply.messages],
        strategy=strategy,
        keys=reply.keys,
        truncated=reply.truncated,
        **more,
        ended=reply.ended,
        leaks=reply.leaks,
    )


def _give_up(reply: Dialogue, failure: Failure) -> Dialogue | Failure:
    if failure.transient or not reply.messages:
        return failure
    reply.ended = f"failed_{failure.reason}"
    return reply


def user_turn(
    answer: Completion,
    before: Sequence[Message],
    *,
    markers: Sequence[str] = (),
    closing: str = "",
    prompt_lines: Sequence[str] = (),
) -> Turn:
    """Read a simulated user's turn; one that no user would write ends the conversation before it.

    `markers` are speaker marks of the transcript, removed like any speaker's label; `closing` is the text by which the
    user ends the conversation, and `prompt_lines` are the lines of its other instructions. Reasons for an end:
    `closed`, `cut_user` (truncated at max_tokens), `role_leak`, `prompt_leak` (it repeats a line of the prompt),
    `thanks`, `repeated`, `echo`, `empty_user`, or that of an unusable answer.
    """
    split = split_answer(answer, "strip", before)
    if isinstance(split, Failure):
        return Turn("", "empty_user" if split.reason == "empty" else split.reason)
    text, leak = without_leak(strip_quotes(split.answer), markers)
    earlier = [message.content for message in before if message.role == "user"]
    answers = [message.content for message in before if message.role == "assistant"]
    ends = {
        "closed": closing and closing.casefold() in text.casefold(),
        "role_leak": (leak and not text) or _LIKE_ASSISTANT.search(text),
        "empty_user": not text,
        "prompt_leak": repeats_prompt(text, prompt_lines),
        "cut_user": answer.finish == "length" and leak is None,
        "thanks": is_farewell(text),
        "repeated": is_repeated(text, earlier),
        "echo": is_echo(text, answers),
    }
    ended = next((reason for reason, applies in ends.items() if applies), None)
    return Turn("" if ended else text, ended, "answered" if ended == "role_leak" and text else leak)


def without_leak(text: str, markers: Sequence[str] = ()) -> tuple[str, str | None]:
    """The turn without a label in front, up to where another speaker's begins; and `cut` if one does."""
    starts = [_LABEL, *([re.compile("|".join(map(re.escape, markers)))] if markers else [])]
    text = text.strip()
    for pattern in starts:
        if (label := pattern.match(text)) is not None:
            text = text[label.end() :].strip()
    positions = [match.start() for pattern in starts if (match := pattern.search(text)) is not None]
    if not positions:
        return text, None
    return text[: min(positions)].strip(), "cut"


def is_farewell(text: str) -> bool:
    """Whether a short turn only thanks or says goodbye."""
    return "?" not in text and len(text.split()) <= FAREWELL_WORDS and _FAREWELL.search(text) is not None
