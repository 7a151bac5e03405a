"""Separates a reasoning model's thoughts from its answer, for all common endpoint formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from distill.text.chat_replies import thoughts_of
from distill.types import Completion, Failure, Message

_NAME = r"(?:[\w-]{1,20}[:_])?(?:think|thinking|thoughts?|reasoning)"
_BLOCKS = tuple(
    (re.compile(rf"\s*{opening}", re.IGNORECASE), closing)
    for opening, closing in (
        (rf"<(?P<name>{_NAME})>", r"</{}>"),  # DeepSeek, Qwen, GLM, Seed (seed:think), Gemini, Exaone, Reka
        (r"\[(?P<name>THINK)\]", r"\[/{}\]"),  # Magistral
        (r"◁(?P<name>think)▷", r"◁/{}▷"),  # Kimi
        (r"<\|begin_of_(?P<name>thought)\|>", r"<\|end_of_{}\|>"),  # Sky-T1, OpenThinker
        (r"<\|START_(?P<name>THINKING)\|>", r"<\|END_{}\|>"),  # Command A
        (r"<\|channel>(?P<name>thought)\s", r"<channel\|>"),  # Gemma 4
    )
)
"""The opening of a block of thoughts at the very start of a reply, and the pattern of its end."""
_WRAPPERS = (
    ("<answer>", "</answer>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)
"""What a whole answer behind thoughts may be wrapped in."""
_CLOSES_ALONE = re.compile(
    r"^[ \t]*(?P<first>{0})|(?P<last>{0})[ \t]*$".format(r"</(?:seed:)?think(?:ing)?>|\[/THINK\]|◁/think▷"),
    re.IGNORECASE | re.MULTILINE,
)
_OPENS = re.compile(r"<(?:seed:)?think(?:ing)?>|\[THINK\]|◁think▷", re.IGNORECASE)
_ABOUT_TAGS = re.compile(r"</?(?:seed:)?think|\[/?THINK\]|◁/?think▷", re.IGNORECASE)
_HARMONY = re.compile(r"\s*(?:<\|start\|>\w*)?<\|channel\|>")
_SEGMENT = re.compile(
    r"<\|channel\|>(?P<channel>\w+)(?:<\|constrain\|>|[^<])*<\|message\|>(?P<text>.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
_BARE_HARMONY = re.compile(r"\s*analysis(?P<thoughts>.*?)assistantfinal(?P<answer>.*)", re.DOTALL)
"""The same where a server has dropped the control tokens."""
_MARKUP = re.compile(r"\b(?:xml|html|markup|tags?|elements?)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SplitAnswer:
    """An answer separated from the thoughts before it."""

    answer: str
    thoughts: str = ""
    is_open: bool = False
    """Whether the text ends inside a block of thoughts, so that there is no whole answer."""


Asked: TypeAlias = Sequence[Message] | str
"""What was asked: messages, or a raw prompt."""


def split_thoughts(answer: Completion, asked: Asked = ()) -> SplitAnswer:
    """Thoughts and answer of a completion; thoughts are those beside its text and those of `in_text`."""
    beside = thoughts_of(answer.raw)
    reply = in_text(answer.text, asked, is_cut=answer.finish == "length")
    return SplitAnswer(reply.answer, _joined((beside, reply.thoughts)), reply.is_open)


def in_text(text: str, asked: Asked = (), *, is_cut: bool = False) -> SplitAnswer:
    """Thoughts and answer of a text.

    Thoughts are closed blocks at the very start, in the form of any family of models. A closing tag without an opening
    one, at either end of a line, closes thoughts that began with the text, because some chat templates open the block
    in the prompt; if cut, such thoughts look like an answer. Where a user's turn holds a tag, it is text.
    """
    question = asked if isinstance(asked, str) else "\n".join(turn.content for turn in asked if turn.role == "user")
    if (reply := _of_channels(text, question) or _of_template(text, question)) is not None:
        return reply
    if text.lstrip()[:1] not in tuple("<[◁"):
        return SplitAnswer(text.strip())
    pieces: list[str] = []
    place = 0
    while (block := _block(text, place, question)) is not None:
        opening, closing = block
        if (end := closing.search(text, opening.end())) is None:
            if not _is_cut_thought(text, opening, is_cut=is_cut):
                break
            return SplitAnswer("", _joined((*pieces, text[opening.end() :])), is_open=True)
        pieces.append(text[opening.end() : end.start()])
        place = end.end()
    return SplitAnswer(_unwrapped(text[place:].strip(), question) if place else text.strip(), _joined(pieces))


def _block(text: str, place: int, question: str) -> tuple[re.Match[str], re.Pattern[str]] | None:
    """The opening of a block at a place, and the pattern of its end; `None` where the question holds it."""
    for pattern, end in _BLOCKS:
        if (opening := pattern.match(text, place)) is not None:
            name = opening["name"]
            closing = re.compile(end.format(re.escape(name)), re.IGNORECASE)
            begins = re.escape(text[opening.start() : opening.end("name")].strip())
            is_asked = re.search(rf"{begins}\b|{closing.pattern}", question, re.IGNORECASE)
            return None if is_asked or _speaks_of(question, name) else (opening, closing)
    return None


def _speaks_of(question: str, name: str) -> bool:
    """Whether a question has a tag's name as a word beside "tag" or "XML"; "think" is too common a word for that."""
    is_noun = re.fullmatch("thoughts?|reasoning", name, re.IGNORECASE) is not None
    return bool(is_noun and re.search(rf"\b{name}\b", question, re.IGNORECASE) and _MARKUP.search(question))


def _is_cut_thought(text: str, opening: re.Match[str], *, is_cut: bool) -> bool:
    """Whether a block without an end is one of thoughts: "<reasoning> is a good name for it." is an answer."""
    is_thinking = "think" in opening["name"].casefold()
    return is_cut or is_thinking or opening[0].endswith("\n") or text[opening.end() :][:1] == "\n"


def _of_template(text: str, question: str) -> SplitAnswer | None:
    """Thoughts whose opening tag stands in the chat template, up to a closing one outside of code."""
    closing = _CLOSES_ALONE.search(text) if "/" in text else None
    if closing is None or _OPENS.search(text, 0, closing.start()) or _ABOUT_TAGS.search(question):
        return None
    if text.count("```", 0, closing.start()) % 2:
        return None
    return SplitAnswer(text[closing.end() :].strip(), text[: closing.start()].strip())


def _of_channels(text: str, question: str) -> SplitAnswer | None:
    """Thoughts and answer in the channels of gpt-oss (openai/harmony), with or without their control tokens."""
    if _HARMONY.match(text) and "<|channel|>" not in question:
        segments = [(each["channel"], each["text"]) for each in _SEGMENT.finditer(text)]
        answer = _joined(piece for channel, piece in segments if channel == "final")
        thoughts = _joined(piece for channel, piece in segments if channel != "final")
        return SplitAnswer(answer, thoughts, is_open=all(channel != "final" for channel, _ in segments))
    bare = _BARE_HARMONY.fullmatch(text) if "assistantfinal" not in question else None
    return None if bare is None else SplitAnswer(bare["answer"].strip(), bare["thoughts"].strip())


def _unwrapped(text: str, question: str) -> str:
    """The answer behind thoughts, out of the tag around the whole of it; the end may be cut off."""
    for opening, closing in _WRAPPERS:
        if text.startswith(opening) and opening not in question and closing not in text[: -len(closing)]:
            return text.removeprefix(opening).removesuffix(closing).strip()
    return text


def _joined(pieces: Iterable[str]) -> str:
    return "\n\n".join(filter(None, (piece.strip() for piece in pieces)))


Handling: TypeAlias = Literal["separate", "strip", "keep"]
"""`separate`: thoughts go to `meta.thoughts`, which training ignores. `strip`: they are dropped; the journal still has
them. `keep`: the student learns them, in `<think>` tags on lines of their own before the answer."""


def split_answer(answer: Completion, handling: Handling = "separate", asked: Asked = ()) -> SplitAnswer | Failure:
    """The answer and thoughts for a session, by `handling`; or a failure.

    A failure replaces an answer that the endpoint withheld (`filtered`), a call of a tool (`tool_call`), an answer that
    ends inside its thoughts (`open_thoughts`), thoughts without an answer (`only_thoughts`), and an `empty` one; none
    is transient. `asked` is what the answer replies to, see `in_text`.
    """
    reply = split_thoughts(answer, asked)
    is_blank = not any(sign.isprintable() and not sign.isspace() for sign in reply.answer)
    faults = (
        ("filtered", answer.finish == "filtered", "the endpoint withheld the answer"),
        ("tool_call", answer.finish == "tool", "the answer is a call of a tool"),
        ("open_thoughts", reply.is_open, f"the answer ends inside its thoughts (finish: {answer.finish})"),
        ("only_thoughts", reply.thoughts and is_blank, f"thoughts without an answer (finish: {answer.finish})"),
        ("empty", is_blank, f"the answer is empty (finish: {answer.finish})"),
    )
    for reason, applies, detail in faults:
        if applies:
            return Failure(key=answer.key, reason=reason, detail=detail, transient=False)
    if handling == "keep" and reply.thoughts:
        return SplitAnswer(f"<think>\n{reply.thoughts}\n</think>\n\n{reply.answer}")
    return SplitAnswer(reply.answer, reply.thoughts if handling == "separate" else "")
