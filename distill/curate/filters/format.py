"""Flags malformed conversations: wrong turn order, markers of another format, unfilled templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from distill import recipe
from distill.curate.filters import prose_of
from distill.types import Message, Session, Verdict

Problem = Literal["roles", "end", "marker", "leftover", "speaker", "fence"]

_MARKER = re.compile(
    r"^\#{2,4}\ ?(?:instruction|response|human|assistant|user)\ ?:"  # Alpaca
    r"|\#{3}\ ?(?:human|assistant)\ ?:"  # early Vicuna
    r"|<\|[a-z_]{2,24}\|>|<｜[^｜\n]{2,24}｜>"  # ChatML, Llama 3, Phi; DeepSeek
    r"|\[/?INST\]|<</?SYS>>"  # Llama 2
    r"|<(?:start|end)_of_turn>"  # Gemma
    r"|\[\|?(?:Human|AI)\|?\]"  # Baize
    r"|\A<s>|</s>\s*\Z|<(?:bos|eos|pad|unk)>|<0x[0-9A-F]{2}>|<extra_id_\d{1,3}>",  # SentencePiece, T5
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_LEFTOVER = re.compile(
    r"(?<![\\\w}$])\{\{\ ?[a-z_][a-z_.]{0,40}\ ?\}\}(?!\})|\{%-?\ [^%\n]{1,80}%\}"  # Jinja, Handlebars
    r"|(?<![\\\w$])\{(?:instruction|input|output|response|prompt|question|answer|context|topic|text)\}",
    re.IGNORECASE | re.VERBOSE,
)
_EMPTY = re.compile(r"<no(?:in|out)put>", re.IGNORECASE)  # Alpaca's mark of an empty field
_SPEAKER = re.compile(r"^(?:human|user|assistant|ai|chatgpt|gpt-?4?|bot) ?: ", re.IGNORECASE | re.MULTILINE)


class Format:
    """Checks that turns alternate and that texts contain nothing of a template or another turn.

    Marks inside code are ignored, because an answer may explain them. The lists of marks are our own, after the formats
    themselves. `roles`: turns do not alternate, or the first is not the user's; `end`: the last turn is not the
    assistant's; `marker`: a mark of a training format, such as `### Instruction:` or `<|im_start|>`; `leftover`: an
    unfilled template field, such as `{instruction}` or `<noinput>`; `speaker`: an answer with a line `Human: …`;
    `fence`: an answer with an unclosed code fence.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: format`."""

        drop: tuple[Problem, ...] = ("roles", "end", "marker")
        """Problems that drop a session; others label it, since a task may ask for dialogues and templates."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> dict[str, str]:
        """By problem, an excerpt that shows it."""
        has_end = bool(session.messages) and session.messages[-1].role == "assistant"
        wrong_end = "" if has_end else "the last turn is not the assistant's"
        problems = {"roles": _wrong_order(session.messages), "end": wrong_end}
        for message in session.messages:
            for problem, example in _in_text(message).items():
                problems[problem] = problems.get(problem) or example
        return {problem: example for problem, example in problems.items() if example}

    def decide(self, value: Mapping[str, str]) -> Verdict:
        """A verdict names the first problem that drops the session, else the first problem."""
        cause: str | None = next((problem for problem in value if problem in self.options.drop), None)
        reason: str = cause or next(iter(value), "ok")
        return Verdict(rule="format", keep=cause is None, reason=reason, value=value.get(reason))


def _wrong_order(messages: Sequence[Message]) -> str:
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[place % 2] for place in range(len(turns))]
    return "" if turns and turns == expected else " ".join(roles[:12]) or "no messages"


def _in_text(message: Message) -> dict[str, str]:
    prose, fence = prose_of(message.content)
    problems = {
        "marker": _first(_MARKER, prose) if any(mark in prose for mark in "#<[") else "",
        "leftover": (_first(_LEFTOVER, prose) if "{" in prose else "") or _first(_EMPTY, message.content),
    }
    if message.role == "assistant":
        problems["marker"] = problems["marker"] or _half_a_thought(prose)
        problems |= {"speaker": _first(_SPEAKER, prose), "fence": fence or ""}
    return problems


def _half_a_thought(text: str) -> str:
    """The tag of a teacher's thoughts whose counterpart is missing, else the empty text."""
    openings, closings = text.count("<think>"), text.count("</think>")
    return "" if openings == closings else "<think>" if openings > closings else "</think>"


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group().strip()[:80] if match else ""
