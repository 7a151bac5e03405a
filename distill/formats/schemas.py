"""Row schemas of foreign datasets, and their parsers.

A row is repaired where its meaning is clear, and rejected with a reason where it is malformed. Filtering by words,
language, length or duplicates is left to curate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from distill.core.jsonl import own_meta
from distill.formats.chat_html import cleaned
from distill.formats.json_rows import ForeignRow, RejectedRow, Rows, decoder
from distill.types import Message

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Our role by its name in other formats."""
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation")
PROMPT_KEYS, ANSWER_KEYS, SYSTEM_KEYS = (
    ("prompt", "question", "query"),
    ("response", "completion", "answer"),
    ("system_prompt", "system"),
)
SERVICE_ERROR = "Too many requests in 1 hour"
"""Shown on ChatGPT's page instead of an answer."""
TASK_EXPECTED = 'expected an object with the key `instruction`, such as {"instruction": "Name three rivers."}'


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRow:
    """The contents of one row."""

    line: int
    messages: tuple[Message, ...]
    """The conversation; without an answer it ends with the question."""
    instruction: str
    """The first user turn, without its input."""
    input: str = ""
    id: str | None = None
    """The row's own id."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()
    again: bool = False
    """Another answer to the previous row's task."""

    @property
    def is_answered(self) -> bool:
        """Whether the conversation ends with an answer."""
        return bool(self.messages) and self.messages[-1].role == "assistant"


class MalformedRow(ValueError):
    """A row that cannot be used; raised only within this module and the importers."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


Shape: TypeAlias = Callable[[ForeignRow], Iterator[ParsedRow | RejectedRow]]


def parse(rows: Rows, shape: Shape | None = None) -> Iterator[ParsedRow | RejectedRow]:
    """The contents of every row, parsed by a shape; without one, the keys of each row determine it."""
    for row in rows:
        if isinstance(row, RejectedRow):
            yield row
            continue
        try:
            for item in (shape or _shape_for(row))(row):
                yield replace(item, repairs=(*row.repairs, *item.repairs)) if isinstance(item, ParsedRow) else item
        except MalformedRow as fault:
            yield RejectedRow(row.line, fault.reason, str(fault))


def name_of(row: Mapping[str, Any]) -> str | None:
    """The name of the shape that a row's keys indicate; `None` for an unknown shape."""
    tests = (
        ("self_instruct", "instruction" in row and "instances" in row),
        ("distill", "messages" in row and _is_meta(row.get("meta"))),
        ("openai", "messages" in row),
        ("sharegpt", "conversations" in row or "conversation" in row),
        ("questions", "turns" in row),
        ("oasst", "message_tree_id" in row and ("prompt" in row or "text" in row)),
        ("alpaca", "instruction" in row and "output" in row),
        ("distill", "instruction" in row),
        ("prompt_response", isinstance(row.get(_first(row, PROMPT_KEYS) or ""), (str, list))),
    )
    return next((name for name, is_it in tests if is_it), None)


def _shape_for(row: ForeignRow) -> Shape:
    name = name_of(row.value)
    if name is None or name not in SHAPES:
        keys = ", ".join(sorted(map(str, row.value))[:8])
        raise MalformedRow("unknown_shape", f"found the keys {keys}; expected those of {', '.join(SHAPES)}")
    return SHAPES[name]


def alpaca(row: ForeignRow) -> Iterator[ParsedRow]:
    """Stanford Alpaca: `instruction`, `input` and `output`, one turn; without an output it is a task."""
    instruction, input = _text(row, "instruction"), _text(row, "input", required=False)
    answer = _text(row, "output", required=False)
    yield _single(row, instruction, input, answer)


def self_instruct(row: ForeignRow) -> Iterator[ParsedRow | RejectedRow]:
    """Self-Instruct's seed tasks: `instruction` and `instances` of `input` and `output`, each a session."""
    instruction, instances = _text(row, "instruction"), row.value.get("instances")
    if not isinstance(instances, list) or not instances:
        raise MalformedRow("no_instances", "`instances` is no list, or is empty")
    meta = {name: row.value[name] for name in ("name", "is_classification") if name in row.value}
    for number, instance in enumerate(instances, start=1):
        try:
            inner = ForeignRow(row.line, instance if isinstance(instance, dict) else {})
            input, answer = (_text(inner, key, required=False) for key in ("input", "output"))
        except MalformedRow as fault:
            yield RejectedRow(row.line, fault.reason, f"instance {number}: {fault}")
            continue
        parsed = _single(row, instruction, input, answer)
        yield replace(parsed, meta=meta, again=number > 1)


def prompt_response(row: ForeignRow) -> Iterator[ParsedRow]:
    """A `prompt` (or `question`) and its `response` (or `completion`, `answer`): texts, or lists of turns."""
    names = [_first(row.value, keys) for keys in (PROMPT_KEYS, ANSWER_KEYS)]
    prompt, answer = (row.value.get(name) if name else None for name in names)
    if isinstance(prompt, list) and isinstance(answer, list):
        yield _conversation(row, _turns([*prompt, *answer]))
        return
    question, reply = _text(row, names[0] or "prompt"), _text(row, names[1] or "response", required=False)
    system = next((text for key in SYSTEM_KEYS if (text := _text(row, key, required=False))), "")
    yield _single(row, question, "", reply, system=system)


def questions(row: ForeignRow) -> Iterator[ParsedRow]:
    """MT-Bench and Vicuna questions: `question_id`, `category` and `turns`; the first turn is the task."""
    turns = row.value.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise MalformedRow("no_turns", "`turns` is no list of texts")
    meta = {name: row.value[name] for name in ("category", "reference") if name in row.value}
    parsed = _single(row, turns[0], "", "", id=row.value.get("question_id"))
    yield replace(parsed, meta={**meta, **({"turns": turns} if len(turns) > 1 else {})})


def openai(row: ForeignRow) -> Iterator[ParsedRow]:
    """OpenAI's `messages` of `role` and `content`; calls of tools are rejected."""
    yield _conversation(row, _turns(row.value.get("messages")))


def sharegpt(row: ForeignRow) -> Iterator[ParsedRow]:
    """ShareGPT's `conversations` of `from` and `value`, without remains of the web page they were copied from.

    A row with `"cleaned": true` is left unchanged.
    """
    turns = _turns(row.value.get("conversations", row.value.get("conversation")))
    if row.value.get("cleaned") is True:
        yield _conversation(row, turns)
        return
    repairs: list[str] = []
    messages = []
    for message in turns:
        try:
            text, changes = cleaned(message.content, answer=message.role == "assistant")
        except ValueError as error:
            raise MalformedRow("bad_html", str(error)) from error
        repairs += changes
        is_error = message.role == "assistant" and text.startswith(SERVICE_ERROR)
        messages.append(Message(message.role, "" if is_error or not text[:1].isprintable() else text))
    parsed = _conversation(row, messages)
    yield replace(parsed, repairs=(*dict.fromkeys(repairs), *parsed.repairs))


def own(row: ForeignRow) -> Iterator[ParsedRow]:
    """Our own rows, unchanged: sessions (`messages`, `meta`) or tasks (`instruction`, `input`, `meta`)."""
    meta = row.value.get("meta") or {}
    if isinstance(meta, str) and _is_meta(meta):
        meta = _decoded_meta(meta)
    if not isinstance(meta, dict):
        raise MalformedRow("bad_meta", f"`meta`: found {type(meta).__name__}, expected an object")
    if "messages" not in row.value:
        parsed = _single(row, _task_text(row), _text(row, "input", required=False), "", drop_blank_input=False)
        yield replace(parsed, meta=meta)
        return
    messages = _turns(row.value["messages"])
    if not messages:
        raise MalformedRow("no_turns", "`messages` is empty")
    question = next((message.content for message in messages if message.role == "user"), "")
    yield ParsedRow(
        line=row.line, messages=tuple(messages), instruction=question, id=_id(row.value.get("id")), meta=own_meta(meta)
    )


def _is_meta(value: Any) -> bool:
    """Whether a value can be the meta of our own rows: an object or, in a table, its JSON text."""
    return isinstance(value, dict) or (isinstance(value, str) and value.startswith("{"))


def _decoded_meta(meta: str) -> Any:
    try:
        return decoder.decode(meta)
    except (ValueError, RecursionError) as error:
        raise MalformedRow("bad_meta", f"`meta`: not JSON ({error})") from error


def _task_text(row: ForeignRow) -> str:
    if "instruction" not in row.value:
        raise MalformedRow("no_instruction", f"`instruction`: field required; {TASK_EXPECTED}")
    value = row.value["instruction"]
    if not isinstance(value, str):
        raise MalformedRow("not_text", f"`instruction`: found {type(value).__name__}; {TASK_EXPECTED}")
    if not value.strip():
        raise MalformedRow("no_text", f"`instruction` is empty; {TASK_EXPECTED}")
    return value


SHAPES: Mapping[str, Shape] = {
    "self_instruct": self_instruct,
    "distill": own,
    "openai": openai,
    "sharegpt": sharegpt,
    "questions": questions,
    "alpaca": alpaca,
    "prompt_response": prompt_response,
}
"""By the name of the importer that reads it from JSON."""


def irregularity(messages: Sequence[Message]) -> str | None:
    """Why some formats cannot hold a conversation; `None` if all can.

    It may start with a system turn; then questions and answers alternate, with an answer at the end; no turn is blank.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if any(not message.content.strip() for message in messages):
        return "empty_turn"
    is_alternating = [message.role for message in turns] == ["user", "assistant"] * (len(turns) // 2)
    return None if turns and is_alternating else "not_alternating"


# Parts of rows


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if row.get(key) is not None), None)


def _text(row: ForeignRow, key: str, *, required: bool = True) -> str:
    value = row.value.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        kind = "nothing" if value is None else type(value).__name__
        raise MalformedRow("not_text", f"`{key}`: found {kind}, expected a text")
    if required and not value.strip():
        raise MalformedRow("no_text", f"`{key}` is empty")
    return value


def _id(value: Any) -> str | None:
    """The row's own id, if it is usable."""
    is_id = isinstance(value, (str, int)) and not isinstance(value, bool)
    return str(value) if is_id and str(value).strip() else None


def _row_id(row: ForeignRow) -> str | None:
    names = ("id", "conversation_id", "prompt_id", "message_tree_id")
    return next((id for name in names if (id := _id(row.value.get(name))) is not None), None)


def _single(
    row: ForeignRow,
    instruction: str,
    input: str,
    answer: str,
    *,
    system: str = "",
    id: Any = None,
    drop_blank_input: bool = True,
) -> ParsedRow:
    """One question, and its answer where there is one."""
    question = f"{instruction}\n\n{input}" if input.strip() else instruction
    messages = [Message("system", system)] if system.strip() else []
    messages.append(Message("user", question))
    if answer.strip():
        messages.append(Message("assistant", answer))
    return ParsedRow(
        line=row.line,
        messages=tuple(messages),
        instruction=instruction,
        input=input if input.strip() or not drop_blank_input else "",
        id=_id(id) if id is not None else _row_id(row),
    )


def _turns(items: Any) -> list[Message]:
    """The turns of a list, with our names of the roles."""
    if not isinstance(items, list):
        raise MalformedRow("no_turns", f"found {type(items).__name__}, expected a list of turns")
    return [_turn(item, number) for number, item in enumerate(items, start=1)]


def _turn(item: Any, number: int) -> Message:
    if not isinstance(item, Mapping):
        raise MalformedRow("bad_turn", f"turn {number}: found {type(item).__name__}, expected an object")
    name = item.get("role", item.get("from"))
    if name in TOOL_ROLES or item.get("tool_calls") or item.get("function_call"):
        raise MalformedRow("tool_turn", f"turn {number} calls or answers a tool; only text can be learnt")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise MalformedRow("unknown_role", f"turn {number}: unknown role {str(name)[:40]!r}")
    content = item.get("content", item.get("value", item.get("text")))
    return Message(role, _content(content, number))


def _content(content: Any, number: int) -> str:
    """A turn's text, or the texts of its parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    texts = [_part_text(part) for part in content] if isinstance(content, list) else [None]
    if None not in texts:
        return "\n".join(map(str, texts))
    raise MalformedRow("not_text", f"turn {number} is not only text; only text can be learnt")


def _part_text(part: Any) -> str | None:
    text = part.get("text") if isinstance(part, Mapping) else None
    return text if part.get("type", "text") in ("text", "input_text", "output_text") and isinstance(text, str) else None


def _conversation(row: ForeignRow, turns: Sequence[Message]) -> ParsedRow:
    messages, repairs = regular(turns)
    question = next(message.content for message in messages if message.role == "user")
    return ParsedRow(
        line=row.line,
        messages=tuple(messages),
        instruction=question,
        id=_row_id(row),
        repairs=tuple(dict.fromkeys(repairs)),
    )


def regular(turns: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """The usable part of a conversation (system turn, question, answer, question, answer …) and the repairs.

    An unanswered conversation is reduced to its first question. Raises `MalformedRow`.
    """
    system, rest, repairs = _system(turns)
    while rest and rest[0].role == "assistant":
        rest, repairs = rest[1:], [*repairs, "leading_answer_dropped"]
    sound: list[Message] = []
    for message in rest:
        if not message.content.strip():
            repairs.append("cut_at_empty_turn")
            break
        if sound and sound[-1].role == message.role:
            if sound[-1].content == message.content:
                repairs.append("repeated_turn_dropped")
                continue
            if message.role == "assistant":
                repairs.append("cut_at_second_answer")
                sound = sound[:-2]
                break
            repairs.append("questions_joined")
            sound[-1] = Message("user", f"{sound[-1].content}\n\n{message.content}")
            continue
        sound.append(message)
    if not sound:
        raise MalformedRow("no_turns", f"no usable turn of {len(turns)}" + (f" ({repairs[-1]})" if repairs else ""))
    if len(sound) > 1 and sound[-1].role == "user":
        sound.pop()
        repairs.append("trailing_question_dropped")
    return [*system, *sound], repairs


def _system(turns: Sequence[Message]) -> tuple[list[Message], list[Message], list[str]]:
    """The system turn, the turns after it, and the repairs."""
    count = next((index for index, message in enumerate(turns) if message.role != "system"), len(turns))
    if count > 1 or any(message.role == "system" for message in turns[count:]):
        raise MalformedRow(
            "system_turn_inside", "a system turn that is not the first; expected at most one, at the start"
        )
    system, rest = list(turns[:count]), list(turns[count:])
    if system and not system[0].content.strip():
        return [], rest, ["empty_system_dropped"]
    return system, rest, []
