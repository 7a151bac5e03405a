"""Turns of foreign conversations: their roles, texts and weights, and the repairs that make them alternate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.errors import DistillError
from distill.formats.json_rows import decoder
from distill.types import Message, Session

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "chatbot", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(("model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Our role by its name in other formats, in lower case."""
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation")
QUESTION_KEYS = (
    "instruction", "prompt", "question", "query", "problem", "inputs", "user", "human", "input", "question_stem", "q",
)  # fmt: skip
ANSWER_KEYS = (
    "output", "response", "completion", "target", "targets", "solution", "answer", "assistant", "bot", "answers",
    "answerkey", "a",
)  # fmt: skip
"""Keys of a question and its answer, in a row or in a turn that holds both; the first with a value counts.

These and all keys below are written in any case.
"""
SYSTEM_KEYS = ("system", "system_prompt", "system_message", "systeminstruction", "system_instruction")
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text", "parts")
WEIGHT_KEYS = ("weight", "train", "training", "loss", "output_with_loss")
"""Whether a turn is learnt: OpenAI's key, axolotl's two, ms-swift's and xtuner's."""
DETAIL_KEYS = ("train_detail", "training_detail")
"""axolotl's keys of the parts of a turn that are learnt."""
_WEIGHT_KEYS = frozenset((*WEIGHT_KEYS, *DETAIL_KEYS))
TURN_KEYS = frozenset((
    *QUESTION_KEYS, *ANSWER_KEYS, *SYSTEM_KEYS, *ROLE_KEYS, *CONTENT_KEYS, *WEIGHT_KEYS, "tool_calls", "function_call",
))  # fmt: skip
"""Keys of turns that are read."""
WEIGHTS = "answer_weights"
"""Key in a session's meta: for each of its answers 1, or 0 where it is context only; absent where all are learnt."""
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_MARKED = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:\A|\n\n)(Human|Assistant):",  # Anthropic's HH
        r"(?:\A|\n)(Human|Assistant):",  # Belle's dialogues
        r"### ?(Human|Assistant):",  # Guanaco
        r"<\|im_start\|>(\w{1,20})\n",  # ChatML
    )
)
"""Marks before the turns of a conversation in one text; the role is a group."""


class MalformedRow(ValueError):
    """A row that cannot be used; raised only within the schemas and the importers."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a foreign row."""

    role: str
    content: str
    learnt: bool = True
    """False for an answer that is context only."""


def first_key(row: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of the keys that has a value, which a blank text is not."""
    for key in keys:
        if key in row and not is_blank(row[key]):
            return key
    return None


def is_blank(value: Any) -> bool:
    """Whether a value holds nothing."""
    return not value.strip() if isinstance(value, str) else value is None or value in ([], {})


def role_of(name: Any) -> str | None:
    """Our role by a foreign name, in any case; `None` for an unknown one."""
    return ROLES.get(name.strip().lower()) if isinstance(name, str) else None


def turns_of(items: Any) -> list[Turn]:
    """The turns of a list, or of its JSON text: turns with a role, pairs, or texts of user and assistant in turn.

    Raises `MalformedRow`.
    """
    if isinstance(items, str) and items.lstrip().startswith("["):
        items = decoded(items, "no_turns")
    if not isinstance(items, list):
        raise MalformedRow("no_turns", f"found {type(items).__name__}, expected a list of turns")
    return [turn for number, item in enumerate(items, start=1) for turn in _turns_in(item, number)]


def decoded(text: str, reason: str) -> Any:
    """The value of a JSON text. Raises `MalformedRow` with the reason."""
    try:
        return decoder.decode(text.strip())
    except (ValueError, RecursionError) as error:
        raise MalformedRow(reason, f"not JSON ({error})") from error


def marked_turns(text: str) -> list[Turn]:
    """The turns of a conversation in one text; empty for a text without marks. Raises `MalformedRow`."""
    return turns_of([{"role": name, "content": content} for name, content in marked_texts(text)])


def marked_texts(text: str) -> list[tuple[str, str]]:
    """Role and content of each turn in a text that begins with a mark, such as `Human:`; empty for any other text."""
    whole = text.strip()
    for mark in _MARKED:
        if mark.match(whole) and len(pieces := mark.split(whole)) > 3:
            contents = (piece.strip().removesuffix("<|im_end|>") for piece in pieces[2::2])
            return list(zip(pieces[1::2], contents, strict=True))
    return []


def content_of(content: Any, where: str) -> str:
    """The text of a turn or column, or the texts of its parts on lines of their own. Raises `MalformedRow`."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, Mapping) and isinstance(content.get("parts"), list):
        content = content["parts"]
    texts = [_part_text(part) for part in (content if isinstance(content, list) else [content])]
    if None not in texts:
        return "\n".join(map(str, texts))
    raise MalformedRow("not_text", f"{where} is not only text; only text can be learnt")


def _part_text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    is_text = isinstance(text, str) and part.get("type") in (None, "text", "input_text", "output_text")
    return text if is_text else None


def _turns_in(item: Any, number: int) -> list[Turn]:
    """The turns of an element: one, or a question and its answer."""
    where = f"turn {number}"
    if isinstance(item, str):
        return [Turn("user" if number % 2 else "assistant", item)]
    if isinstance(item, list) and len(item) == 2:
        return _pair(item[0], item[1], where)
    if not isinstance(item, Mapping):
        raise MalformedRow("bad_turn", f"{where}: found {type(item).__name__}, expected an object")
    item = {str(key).lower(): value for key, value in item.items()}
    if first_key(item, ROLE_KEYS) is not None:
        return [_turn(item, where)]
    question, answer = (
        first_key(item, keys) or next((key for key in keys if key in item), None)
        for keys in (QUESTION_KEYS, ANSWER_KEYS)
    )
    if question is None or answer is None:
        keys = ", ".join(sorted(map(str, item))[:8]) or "none"
        raise MalformedRow("unknown_role", f"{where}: no role in keys {keys}; expected {' or '.join(ROLE_KEYS)}")
    asked, *replied = _pair(item[question], item[answer], where, learnt=_is_learnt(item, where))
    input = content_of(item.get("input"), where) if question != "input" else ""
    whole = replace(asked, content=f"{asked.content}\n\n{input}") if input.strip() else asked
    return [*_system_turn(item), whole, *replied]


def _pair(question: Any, answer: Any, where: str, *, learnt: bool = True) -> list[Turn]:
    return [Turn("user", content_of(question, where)), Turn("assistant", content_of(answer, where), learnt)]


def _turn(item: Mapping[str, Any], where: str) -> Turn:
    name = item[first_key(item, ROLE_KEYS) or ""]
    calls_tool = isinstance(name, str) and name.strip().lower() in TOOL_ROLES
    if calls_tool or item.get("tool_calls") or item.get("function_call"):
        raise MalformedRow("tool_turn", f"{where} calls or answers a tool; only text can be learnt")
    if (role := role_of(name)) is None:
        expected = "expected user, assistant or system"
        raise MalformedRow("unknown_role", f"{where}: unknown role {str(name)[:40]!r}; {expected}")
    content = next((item[key] for key in CONTENT_KEYS if item.get(key) is not None), None)
    return Turn(role, content_of(content, where), role != "assistant" or _is_learnt(item, where))


def _is_learnt(item: Mapping[str, Any], where: str) -> bool:
    """Whether an answer is learnt: what all of its keys say. Raises `MalformedRow` where it is learnt in part."""
    if _WEIGHT_KEYS.isdisjoint(item):
        return True
    weights = {key: item[key] for key in WEIGHT_KEYS if item.get(key) is not None}
    flags = [_FLAGS.get(str(weight)[:40].strip().lower().removesuffix(".0")) for weight in weights.values()]
    if None in flags or any(item.get(key) for key in DETAIL_KEYS):
        shown = ", ".join(f"`{key}` {str(weight)[:40]}" for key, weight in weights.items()) or "parts"
        raise MalformedRow("bad_weight", f"{where} is weighted by {shown}; expected 0 or 1 for the whole turn")
    return all(flags)


def with_system(row: Mapping[str, Any], turns: Sequence[Turn]) -> list[Turn]:
    """The turns after the system message of their row, which a system turn of their own replaces."""
    if any(turn.role == "system" and turn.content.strip() for turn in turns) or not (first := _system_turn(row)):
        return list(turns)
    return [*first, *(turn for turn in turns if turn.role != "system")]


def _system_turn(row: Mapping[str, Any]) -> list[Turn]:
    key = first_key(row, SYSTEM_KEYS)
    text = content_of(row[key], f"`{key}`") if key else ""
    return [Turn("system", text)] if text.strip() else []


def regular(turns: Sequence[Turn]) -> tuple[list[Turn], list[str]]:
    """The usable part of a conversation (system turn, question, answer, question, answer …) and the repairs.

    An unanswered conversation is reduced to its first question. Raises `MalformedRow`.
    """
    system, rest, repairs = _system(turns)
    while rest and rest[0].role == "assistant":
        rest, repairs = rest[1:], [*repairs, "leading_answer_dropped"]
    sound: list[Turn] = []
    for turn in rest:
        if not turn.content.strip():
            repairs.append("cut_at_empty_turn")
            break
        if sound and sound[-1].role == turn.role:
            if sound[-1].content == turn.content:
                repairs.append("repeated_turn_dropped")
                continue
            if turn.role == "assistant":
                repairs.append("cut_at_second_answer")
                sound = sound[:-2]
                break
            repairs.append("questions_joined")
            sound[-1] = replace(turn, content=f"{sound[-1].content}\n\n{turn.content}")
            continue
        sound.append(turn)
    if not sound:
        raise MalformedRow("no_turns", f"no usable turn of {len(turns)}" + (f" ({repairs[-1]})" if repairs else ""))
    if len(sound) > 1 and sound[-1].role == "user":
        sound.pop()
        repairs.append("trailing_question_dropped")
    return [*system, *sound], repairs


def _system(turns: Sequence[Turn]) -> tuple[list[Turn], list[Turn], list[str]]:
    """The system turn, the turns after it, and the repairs."""
    count = next((index for index, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if count > 1 or any(turn.role == "system" for turn in turns[count:]):
        raise MalformedRow(
            "system_turn_inside", "a system turn that is not the first; expected at most one, at the start"
        )
    system, rest = list(turns[:count]), list(turns[count:])
    if system and not system[0].content.strip():
        return [], rest, ["empty_system_dropped"]
    return system, rest, []


def learnt_part(turns: Sequence[Turn]) -> tuple[list[Turn], list[str]]:
    """The conversation up to its last answer that is learnt, and the repairs. Raises `MalformedRow` where none is."""
    if turns[-1].role != "assistant" or turns[-1].learnt:
        return list(turns), []
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.learnt), default=None)
    if last is None:
        raise MalformedRow("nothing_learnt", "the weight of every answer is 0; expected one to learn")
    return list(turns[: last + 1]), ["unlearnt_end_dropped"]


def irregularity(messages: Sequence[Message]) -> str | None:
    """Why some formats cannot hold a conversation; `None` if all can.

    It may start with a system turn; then questions and answers alternate, with an answer at the end; no turn is blank.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if any(not message.content.strip() for message in messages):
        return "empty_turn"
    is_alternating = [message.role for message in turns] == ["user", "assistant"] * (len(turns) // 2)
    return None if turns and is_alternating else "not_alternating"


def learnt_answers(session: Session) -> list[bool]:
    """Whether each answer of a session is learnt. Raises `DistillError` where the weights do not fit its answers."""
    count = sum(message.role == "assistant" for message in session.messages)
    weights = session.meta.get(WEIGHTS, [1] * count)
    if not isinstance(weights, (list, tuple)) or len(weights) != count or not set(map(str, weights)) <= {"0", "1"}:
        raise DistillError(
            f"session {session.id}: meta.{WEIGHTS} is {str(weights)[:60]}; expected {count} numbers, each 0 or 1"
        )
    return [bool(weight) for weight in weights]


def unlearnt_places(session: Session) -> frozenset[int]:
    """Numbers of the messages, from 0, that are answers for context only. Raises `DistillError`."""
    answers = (place for place, message in enumerate(session.messages) if message.role == "assistant")
    return frozenset(place for place, is_learnt in zip(answers, learnt_answers(session), strict=True) if not is_learnt)


def part_meta(session: Session, start: int, stop: int) -> dict[str, Any]:
    """The session's meta with the weights of the answers in `messages[start:stop]` alone."""
    meta = {key: value for key, value in session.meta.items() if key != WEIGHTS}
    if WEIGHTS not in session.meta:
        return meta
    earlier, here = (
        sum(message.role == "assistant" for message in part)
        for part in (session.messages[:start], session.messages[start:stop])
    )
    weights = [int(is_learnt) for is_learnt in learnt_answers(session)[earlier : earlier + here]]
    return {**meta, WEIGHTS: weights} if 0 in weights else meta
