"""A reasoning teacher's answers are compared as they are collected: without its thoughts, or with them."""

from __future__ import annotations

from typing import Any

import pytest

from distill.compare.answers import answer_to
from distill.types import Completion, Message, Request


def played(texts: list[str], finish: Any = "stop", **options: Any) -> Any:
    flow = answer_to(
        Request(role="teacher", messages=(Message("user", "hi"),)), ("more",) * (len(texts) - 1), **options
    )
    asked = next(flow)
    *earlier, last = (Completion(key=text, text=text, finish=finish) for text in texts)
    for completion in earlier:
        asked = flow.send(completion)
    with pytest.raises(StopIteration) as end:
        flow.send(last)
    return end.value.value, [turn.content for turn in asked.messages]


@pytest.mark.parametrize(
    ("thoughts", "first", "last"),
    [
        ("separate", "One.", "Two."),
        ("strip", "One.", "Two."),
        ("keep", "<think>\na\n</think>\n\nOne.", "<think>\nb\n</think>\n\nTwo."),
        (None, "[THINK]a[/THINK]One.", "<think>b</think>Two."),
    ],
)
def test_thoughts_are_treated_as_in_a_session(thoughts, first, last):
    answer, asked = played(["[THINK]a[/THINK]One.", "<think>b</think>Two."], thoughts=thoughts)
    assert (answer.earlier, answer.text, asked) == ((first,), last, ["hi", first, "more"])


@pytest.mark.parametrize(
    ("text", "finish", "is_answer"), [("", "stop", True), ("A", "filtered", False), ("<think>a", "length", False)]
)
def test_an_empty_answer_is_one_and_a_withheld_one_is_none(text, finish, is_answer):
    answer, _ = played([text], finish, thoughts="separate")
    assert (answer is not None and answer.text == "") is is_answer
    assert played([text], finish)[0].text == text
