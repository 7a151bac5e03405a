"""Rows of one question and its answer: Alpaca's, Dolly's and those of most question-answering sets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill.formats.json_rows import ForeignRow
from distill.formats.parsed_row import ParsedRow, conversation, history_of, text_of
from distill.formats.turns import (
    ANSWER_KEYS,
    QUESTION_KEYS,
    MalformedRow,
    Turn,
    content_of,
    first_key,
    marked_turns,
    turns_of,
    with_system,
)

INPUT_KEYS = ("input", "context", "passage")
CHOICE_KEYS = ("choices", "options")
NO_INPUT = re.compile(
    r"[<\[(]?(nan|none|null|n\.?/?a\.?|not applicable|no[ _-]?(in|out)put([ _-](required|needed|provided|given))?)"
    r"[>\])]?\.?",
    re.IGNORECASE,
)
"""What stands in `input` of Alpaca and its descendants where there is none."""
NO_OUTPUT = ("<nooutput>", "<noinput>")


def single(row: ForeignRow) -> Iterator[ParsedRow]:
    """A question, its input, choices, system message and history, and its answer; without an answer it is a task.

    Alpaca's and Dolly's rows, and every pair of `QUESTION_KEYS` and `ANSWER_KEYS`; question and answer may be lists of
    turns.
    """
    turns, instruction, input, repairs = question_of(row)
    answer, more = answer_of(row)
    parsed = conversation(row, [*turns, *answer], [*repairs, *more])
    is_whole = parsed.instruction == f"{instruction}\n\n{input}"
    yield replace(parsed, instruction=instruction, input=input) if input and is_whole else parsed


def question_of(row: ForeignRow) -> tuple[list[Turn], str, str, list[str]]:
    """The turns up to a row's answer, its instruction and input apart, and the repairs. Raises `MalformedRow`."""
    key = first_key(row.value, QUESTION_KEYS)
    if key is None:
        shown = next((name for name in QUESTION_KEYS if row.value.get(name) is not None), None)
        keys = ", ".join(sorted(map(str, row.value))[:8])
        raise (
            MalformedRow("no_text", f"`{shown}` is empty")
            if shown
            else MalformedRow("not_text", f"no question in keys {keys}; expected {', '.join(QUESTION_KEYS[:4])} …")
        )
    question = row.value[key]
    if isinstance(question, list) or (marked := marked_turns(text_of(row, key))):
        turns = turns_of(question) if isinstance(question, list) else marked
        turns = [turn for turn in turns if turn.content.strip() or turn.role != "assistant"]
        repairs = [] if isinstance(question, list) else ["marked_turns_split"]
        return with_system(row.value, [*history_of(row), *turns]), "", "", repairs
    input, repairs = _input(row, [name for name in INPUT_KEYS if name != key])
    text = f"{question}\n\n{input}" if input else question
    return with_system(row.value, [*history_of(row), Turn("user", text)]), question, input, repairs


def _input(row: ForeignRow, keys: Sequence[str]) -> tuple[str, list[str]]:
    """The texts beside a question, and its choices, on paragraphs of their own; a placeholder is none."""
    texts = {name: content_of(row.value.get(name), f"`{name}`") for name in keys}
    real = [text for text in texts.values() if text.strip() and not NO_INPUT.fullmatch(text.strip())]
    repairs = ["placeholder_input_dropped"] if any(map(NO_INPUT.fullmatch, map(str.strip, texts.values()))) else []
    choices = [f"{label}. {text}" for label, text in _choices(row).items()]
    return "\n\n".join([*real, *(["\n".join(choices)] if choices else [])]), repairs


def _choices(row: ForeignRow) -> dict[str, str]:
    """The texts to choose from by their labels: a list, as in MMLU; `text` and `label`, as in ARC; or an object."""
    key = first_key(row.value, CHOICE_KEYS)
    choices, labels = row.value[key] if key else [], None
    if isinstance(choices, Mapping):
        labels, choices = choices.get("label", list(choices)), choices.get("text", list(choices.values()))
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices):
        raise MalformedRow("not_text", f"`{key}`: found {type(choices).__name__}, expected a list of texts")
    if not isinstance(labels, list) or len(labels) != len(choices):
        labels = [_letter(number) for number in range(len(choices))]
    return dict(zip(map(str, labels), choices, strict=True))


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def answer_of(row: ForeignRow) -> tuple[list[Turn], list[str]]:
    """The turns of a row's answer, if it has one, and the repairs. Raises `MalformedRow`."""
    key = first_key(row.value, ANSWER_KEYS)
    value, repairs = _chosen(row.value[key] if key else "", _choices(row)), list[str]()
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return turns_of(value), []
    if key == "answers":
        value, repairs = _first_answer(value)
    if not isinstance(value, str):
        raise MalformedRow("not_text", f"`{key}`: found {type(value).__name__}, expected a text")
    is_none = not value.strip() or value.strip().lower() in NO_OUTPUT
    return [] if is_none else [Turn("assistant", value)], repairs


def _chosen(answer: Any, choices: Mapping[str, str]) -> Any:
    """The choice that a label, or a number from 0, stands for; else the answer itself."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return list(choices.values())[answer]
    if isinstance(answer, str) and answer not in choices.values():
        return choices.get(answer.strip(), answer)
    return answer


def _first_answer(value: Any) -> tuple[Any, list[str]]:
    """The first of several answers to one question, as SQuAD has them."""
    texts = value.get("text") if isinstance(value, Mapping) else value
    if not isinstance(texts, list):
        return texts, []
    return texts[0] if texts else "", ["first_answer_taken"] if any(text != texts[0] for text in texts) else []
