"""Row schemas of foreign datasets, and their parsers.

A row is repaired where its meaning is clear, and rejected with a reason where it is malformed. Columns that no schema
reads are named. Filtering by words, language, length or duplicates is left to curate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from distill.core.jsonl import FIRST_META, own_meta
from distill.errors import DistillError
from distill.formats.chat_html import cleaned
from distill.formats.json_rows import ForeignRow, RejectedRow, Rows
from distill.formats.parsed_row import (
    Columns,
    ParsedRow,
    conversation,
    conversation_turns,
    messages_of,
    reference_of,
    require_usable,
    row_id,
    text_of,
    usable_id,
    weights_meta,
)
from distill.formats.preferences import REJECTED_KEYS, answer_turns, preference
from distill.formats.single_turn import single
from distill.formats.turns import (
    ANSWER_KEYS,
    QUESTION_KEYS,
    ROLE_KEYS,
    MalformedRow,
    Turn,
    decoded,
    first_key,
    is_blank,
    learnt_answers,
    marked_texts,
    marked_turns,
    turns_of,
)
from distill.types import Message, Session

CONVERSATION_KEYS = ("messages", "dialogue", "dialog", "chat", "contents", "data", "turns")
PAGE_KEYS = ("conversations", "conversation", "items")
"""Of ShareGPT and its descendants, whose turns may be copies of a web page."""
TASK_KEYS = ("prompt", "question", "query", "problem")
"""Keys of a question that may stand without an answer."""
OUR_KEYS = frozenset(("id", "messages", "rejected", "meta", "verdicts"))
OUR_MARKS = (("importer",), ("strategy", "teacher"), ("answered_by",), tuple(FIRST_META))
"""Keys in the meta of sessions that this program wrote: imported, collected, of a chat, or the first of a file."""
OUR_TASK_KEYS = frozenset(("id", "instruction", "input", "meta", "reference", "checks"))
SERVICE_ERROR = "Too many requests in 1 hour"
"""Shown on ChatGPT's page instead of an answer."""
TASK_EXPECTED = 'expected an object with the key `instruction`, such as {"instruction": "Name three rivers."}'

Shape: TypeAlias = Callable[[ForeignRow], Iterator[ParsedRow | RejectedRow]]


def parse(rows: Rows, shape: Shape | None = None, *, named: bool = False) -> Iterator[ParsedRow | RejectedRow]:
    """The contents of every row, parsed by a shape; without one, the keys of each row determine it.

    `named`: the user has named the columns to read, so that no other one makes a row unusable.
    """
    for row in rows:
        if isinstance(row, RejectedRow):
            yield row
            continue
        try:
            if not named:
                require_usable(row.value)
            columns = Columns(row.value)
            for item in (shape or shape_for(row))(replace(row, value=columns)):
                yield _noted(item, row, columns) if isinstance(item, ParsedRow) else item
        except MalformedRow as fault:
            yield RejectedRow(row.line, fault.reason, str(fault))


def _noted(item: ParsedRow, row: ForeignRow, columns: Columns) -> ParsedRow:
    ignored = tuple(columns.ignored(message.content for message in item.messages))
    is_noted = ignored or row.repairs
    return replace(item, repairs=(*row.repairs, *item.repairs), ignored=ignored) if is_noted else item


def name_of(row: Mapping[str, Any]) -> str | None:
    """The name of the shape that a row's keys indicate; `None` for an unknown shape.

    A row is ours by its marks alone; one that merely shares a key with ours is of the schema that it fits.
    """
    row = Columns(row)

    def has(*keys: str) -> bool:
        return first_key(row, keys) is not None

    question, turns = first_key(row, QUESTION_KEYS), row.get("turns")
    is_asked = question is not None and isinstance(row[question], (str, list))
    tests = (
        ("self_instruct", "instruction" in row and "instances" in row),
        ("distill", _is_ours(row)),
        ("preference", has(*REJECTED_KEYS)),
        ("openai", has("messages")),
        ("sharegpt", has("conversations", "conversation")),
        ("questions", "turns" in row and not (isinstance(turns, list) and any(map(_is_object, turns)))),
        ("oasst", "message_tree_id" in row and ("prompt" in row or "text" in row)),
        ("alpaca", "instruction" in row),
        ("prompt_response", is_asked and (has(*ANSWER_KEYS) or question in TASK_KEYS)),
        ("openai", _holds_turns(row.get(first_key(row, CONVERSATION_KEYS) or "")) or "messages" in row),
        ("sharegpt", _holds_turns(row.get(first_key(row, PAGE_KEYS) or "")) or "conversations" in row),
        ("text", isinstance(row.get("text"), str) and bool(marked_texts(row["text"]))),
    )
    return next((name for name, is_it in tests if is_it), None)


def _holds_turns(value: Any) -> bool:
    """Whether a value is a list of texts or of turns with roles, and no list of rows."""
    return isinstance(value, list) and all(
        isinstance(item, str) or (isinstance(item, Mapping) and first_key(Columns(item), ROLE_KEYS) is not None)
        for item in value
    )


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_ours(row: Mapping[str, Any]) -> bool:
    """Whether this program wrote a row: a session by the marks in its meta, a task by its keys, without an answer."""
    if "messages" not in row:
        is_marked = {"id", "meta"} <= row.keys() and first_key(row, ANSWER_KEYS) is None
        return "instruction" in row and (is_marked or row.keys() <= OUR_TASK_KEYS)
    meta = row.get("meta")
    if isinstance(meta, str) and meta.startswith("{"):  # in a table
        try:
            meta = decoded(meta, "bad_meta")
        except MalformedRow:
            return False
    return row.keys() <= OUR_KEYS and isinstance(meta, dict) and any(meta.keys() >= set(marks) for marks in OUR_MARKS)


def shape_for(row: ForeignRow) -> Shape:
    """The shape that a row's keys indicate. Raises `MalformedRow` for an unknown one."""
    name = name_of(row.value)
    if name is None or name not in SHAPES:
        keys = ", ".join(sorted(map(str, row.value))[:8])
        raise MalformedRow("unknown_shape", f"found the keys {keys}; expected those of {', '.join(SHAPES)}")
    return SHAPES[name]


def self_instruct(row: ForeignRow) -> Iterator[ParsedRow | RejectedRow]:
    """Self-Instruct's seed tasks: `instruction` and `instances` of `input` and `output`, each a session."""
    instances = row.value.get("instances")
    if not isinstance(instances, list) or not instances:
        raise MalformedRow("no_instances", "`instances` is no list, or is empty")
    task = {"instruction": text_of(row, "instruction"), "id": row_id(row)}
    meta = {name: row.value[name] for name in ("name", "is_classification") if name in row.value}
    meta |= reference_of(row)
    for number, instance in enumerate(instances, start=1):
        values = {**(instance if isinstance(instance, dict) else {}), **task}
        try:
            for parsed in single(ForeignRow(row.line, values)):
                yield replace(parsed, meta={**parsed.meta, **meta}, again=number > 1)
        except MalformedRow as fault:
            yield RejectedRow(row.line, fault.reason, f"instance {number}: {fault}")


def questions(row: ForeignRow) -> Iterator[ParsedRow]:
    """MT-Bench and Vicuna questions: `question_id`, `category` and `turns`; the first turn is the task."""
    turns = row.value.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise MalformedRow("no_turns", "`turns` is no list of texts")
    meta = {"category": row.value["category"]} if "category" in row.value else {}
    id = usable_id(row.value.get("question_id"))
    parsed = replace(conversation(row, [Turn("user", turns[0])]), id=id if id is not None else row_id(row))
    yield replace(parsed, meta={**parsed.meta, **meta, **({"turns": turns} if len(turns) > 1 else {})})


def openai(row: ForeignRow) -> Iterator[ParsedRow]:
    """OpenAI's `messages` of `role` and `content`; calls of tools are rejected."""
    yield conversation(row, conversation_turns(row, CONVERSATION_KEYS))


def sharegpt(row: ForeignRow) -> Iterator[ParsedRow]:
    """ShareGPT's `conversations` of `from` and `value`, without remains of the web page they were copied from.

    A row with `"cleaned": true` is left unchanged.
    """
    turns = conversation_turns(row, PAGE_KEYS)
    if row.value.get("cleaned") is True:
        yield conversation(row, turns)
        return
    repairs: list[str] = []
    clean = []
    for turn in turns:
        try:
            text, changes = cleaned(turn.content, answer=turn.role == "assistant")
        except ValueError as error:
            raise MalformedRow("bad_html", str(error)) from error
        repairs += changes
        is_error = turn.role == "assistant" and text.startswith(SERVICE_ERROR)
        clean.append(replace(turn, content="" if is_error or not text[:1].isprintable() else text))
    yield conversation(row, clean, repairs)


def marked_text(row: ForeignRow) -> Iterator[ParsedRow]:
    """A whole conversation in one `text`, with a mark such as `### Human:` before each turn."""
    yield conversation(row, marked_turns(text_of(row, "text")))


def own(row: ForeignRow) -> Iterator[ParsedRow]:
    """Our own rows, unchanged: sessions (`messages`, `meta`), pairs (`rejected`), or tasks (`instruction`, `input`)."""
    meta = row.value.get("meta") or {}
    if isinstance(meta, str) and meta.startswith("{"):  # in a table
        meta = decoded(meta, "bad_meta")
    if not isinstance(meta, dict):
        raise MalformedRow("bad_meta", f"`meta`: found {type(meta).__name__}, expected an object")
    if "messages" not in row.value:
        instruction, input = _task_text(row), text_of(row, "input", required=False)
        question = f"{instruction}\n\n{input}" if input.strip() else instruction
        messages: tuple[Message, ...] = (Message("user", question),)
        meta = {**meta, **reference_of(row)}
        yield ParsedRow(
            line=row.line, messages=messages, instruction=instruction, input=input, id=row_id(row), meta=meta
        )
        return
    turns = turns_of(row.value["messages"])
    if not turns:
        raise MalformedRow("no_turns", "`messages` is empty")
    rejected = row.value.get("rejected")
    losers = [] if is_blank(rejected) else answer_turns(rejected, "rejected")
    if losers and losers[-1].role != "assistant":
        raise MalformedRow("no_answer", f"`rejected` ends with a {losers[-1].role} turn; expected an answer")
    parsed = ParsedRow(
        line=row.line,
        messages=messages_of(turns),
        instruction=next((turn.content for turn in turns if turn.role == "user"), ""),
        rejected=messages_of(losers)[-1] if losers else None,
        id=usable_id(row.value.get("id")),
        meta=own_meta({**weights_meta(turns), **meta}),
    )
    try:
        learnt_answers(Session(parsed.id or "", parsed.messages, parsed.meta))
    except DistillError as error:
        raise MalformedRow("bad_weight", str(error)) from error
    yield parsed


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
    "preference": preference,
    "openai": openai,
    "sharegpt": sharegpt,
    "questions": questions,
    "alpaca": single,
    "prompt_response": single,
    "text": marked_text,
}
"""By the name of the importer that reads it from JSON."""
