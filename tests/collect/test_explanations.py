"""System messages that ask for explanations: sixteen, drawn by collection."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from distill.collect.strategies.explanations import ALIASES, WEIGHTS, Explanations, messages
from distill.types import Message, Task
from tests.support.flowing import cut, play, well_formed


def explained(meta: dict, *, seed: int = 0, answer="Because.", **options):
    strategy = Explanations(Explanations.Options(**options))
    return play(strategy, Task("t1", "Why is the sky blue?", meta=meta), lambda request: answer, seed=seed)


def drawn(meta: dict, **options) -> Counter[str]:
    return Counter(explained(meta, seed=seed, **options)[0].meta["explanation"] for seed in range(300))


def test_there_are_sixteen_messages_and_one_is_empty():
    assert len(messages()) == 16
    assert [name for name, text in messages().items() if not text] == ["none"]
    assert len(set(messages().values())) == 16


def test_every_message_is_drawn_for_some_collection():
    assert {name for weights in WEIGHTS.values() for name in weights} == set(messages())
    assert set(ALIASES.values()) <= set(WEIGHTS)


def test_the_student_learns_under_the_message_that_was_asked_under():
    session, (request,) = explained({"collection": "cot"})
    text = messages()[session.meta["explanation"]]
    assert request.messages == (Message("system", text), Message("user", "Why is the sky blue?"))
    assert session.messages == (*request.messages, Message("assistant", "Because."))


def test_the_empty_message_is_no_message():
    session, (request,) = explained({}, weights={"default": {"none": 1}})
    assert request.messages == (Message("user", "Why is the sky blue?"),)
    assert well_formed(session)


@pytest.mark.parametrize(
    ("meta", "collection"),
    [
        ({"collection": "CoT"}, "reasoning"),
        ({"kind": "classification"}, "choices"),
        ({"collection": "niv2", "kind": "cot"}, "instructions"),
        ({"kind": "gardening"}, "default"),
        ({}, "default"),
        ({"kind": 3}, "default"),
    ],
)
def test_the_collection_decides_what_is_drawn(meta, collection):
    assert set(drawn(meta)) == set(WEIGHTS[collection])


def test_weights_are_kept_to():
    found = drawn({"kind": "mine"}, weights={"Mine": {"long": 3, "none": 1}})
    assert set(found) == {"long", "none"}
    assert 0.65 < found["long"] / 300 < 0.85


def test_a_task_draws_the_same_again():
    assert [explained({}, seed=5)[0] for _ in range(3)] == [explained({}, seed=5)[0]] * 3


@pytest.mark.parametrize(
    ("weights", "said"),
    [({"default": {"detaled": 1}}, 'did you mean "detailed"'), ({"default": {"none": 0}}, "no weight is above 0")],
)
def test_weights_that_cannot_be_are_refused(weights, said):
    with pytest.raises(ValidationError, match=said):
        Explanations.Options(weights=weights)


@pytest.mark.parametrize(
    ("meta", "stages", "stage"),
    [
        ({"kind": "hard"}, {"hard": 2}, 2),
        ({"kind": "easy"}, {"hard": 2}, 1),
        ({"collection": "cot", "kind": "hard"}, {"cot": 3}, 3),
        ({"stage": 2}, {}, 2),
        ({}, {}, None),
    ],
)
def test_sessions_are_marked_for_progressive_training(meta, stages, stage):
    assert explained(meta, stages=stages)[0].meta.get("stage") == stage


def test_thoughts_are_kept_apart_and_a_cut_answer_is_marked():
    session, _ = explained({}, answer=cut("<think>Light.</think>Because"))
    assert (session.messages[-1].content, session.meta["thoughts"]) == ("Because", "Light.")
    assert session.meta["truncated"] is True
    kept, _ = explained({}, answer="<think>Light.</think>Because.", thoughts="keep")
    assert kept.messages[-1].content == "<think>\nLight.\n</think>\n\nBecause."
