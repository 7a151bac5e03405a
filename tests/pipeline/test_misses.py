"""Which journalled question is nearest, and in what it differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distill.core.files import flatten
from distill.core.hashing import canonical
from distill.engine.journal.keys import Question
from distill.pipeline.explain_miss import LONGEST_SHOWN, explanation
from distill.types import Endpoint, Message, Request, Sampling

HERE = Endpoint(model="m", url="http://h/v1")


def ask(text: str, **sampling: Any) -> Request:
    return Request(role="teacher", messages=(Message("user", text),), sampling=Sampling(**sampling))


def row(request: Request, endpoint: Endpoint = HERE) -> tuple[str, str, str]:
    return Question.of(request, endpoint).key, canonical(request), canonical(endpoint)


def test_the_nearest_differs_in_the_fewest_fields_then_in_the_fewest_characters() -> None:
    asked = Question.of(ask("What is a lake?", temperature=0.7), HERE)
    journalled = [
        row(ask("Name three rivers.", temperature=0.7)),
        row(ask("What is a cake?", temperature=0.7)),
        row(ask("What is a lake?", temperature=0.2, top_p=0.9)),
    ]
    assert explanation("t1", asked, journalled) == [
        f"t1: differs from the nearest journalled question ({journalled[1][0][:12]}) in one field",
        '  request.messages[0].content: "What is a lake?" was "What is a cake?"',
    ]


def test_a_field_at_its_default_is_called_so() -> None:
    journalled = row(ask("a"), replace(HERE, revision="r2"))
    assert explanation("t", Question.of(ask("a", seed=3), HERE), [journalled]) == [
        f"t: differs from the nearest journalled question ({journalled[0][:12]}) in 2 fields",
        '  endpoint.revision: its default was "r2"',
        "  request.sampling.seed: 3 was its default",
    ]


def test_an_empty_journal_and_a_failure_are_told_apart() -> None:
    asked = Question.of(ask("a"), HERE)
    assert "the journal is empty" in explanation("t", asked, [])[0]
    assert "failed and may be asked again" in explanation("t", asked, [row(ask("a"))])[0]


@given(st.text(max_size=400), st.text(max_size=400))
def test_what_is_shown_of_two_texts_is_short_and_holds_their_difference(one: str, other: str) -> None:
    told = explanation("t", Question.of(ask(one), HERE), [row(ask(other))])
    if one != other:
        left, _, right = told[1].partition(" was ")
        assert left != f"  request.messages[0].content: {right}" or one.count(" was ") + other.count(" was ")
        assert len(told[1]) <= 60 + 2 * (6 * LONGEST_SHOWN + 4)


def test_nested_values_become_paths() -> None:
    assert flatten({"a": [{"b": 1}, {"b": {}}], "c": None}, lists=True) == {"a[0].b": 1, "c": None}
