"""The plain strategy: one request, one session, and what becomes of odd ends."""

from __future__ import annotations

from random import Random

import pytest

from distill.collect.strategies.answer import Answer
from distill.types import Completion, Failure, Message, Sampling, Session, Task

TASK = Task("task-00001", "Name a river.", meta={"lineage": ["s1", "s2"]})


def outcome(answer: Completion | Failure, task: Task = TASK, **options) -> Session | Failure:
    flow = Answer(Answer.Options(**options)).flow(task, Random(0))
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(answer)
    return end.value.value


def completion(text: str = "The Danube.", finish: str = "stop") -> Completion:
    return Completion(key="k", text=text, finish=finish)


def test_the_teacher_is_asked_with_its_own_sampling():
    sampling = Sampling(temperature=0.7, max_tokens=64)
    request = next(Answer(Answer.Options(), sampling=sampling).flow(TASK, Random(0)))
    assert (request.role, request.messages, request.sampling) == (
        "teacher",
        (Message("user", "Name a river."),),
        sampling,
    )


def test_the_input_follows_the_instruction_after_a_blank_line():
    request = next(Answer(Answer.Options()).flow(Task("t", "Translate.", "Guten Tag"), Random(0)))
    assert request.messages == (Message("user", "Translate.\n\nGuten Tag"),)


def test_a_system_message_is_asked_and_learned_under():
    session = outcome(completion(), system="Answer briefly.")
    assert session.messages == (
        Message("system", "Answer briefly."),
        Message("user", "Name a river."),
        Message("assistant", "The Danube."),
    )


def test_a_session_says_where_it_comes_from():
    session = outcome(completion())
    assert session.id == TASK.id
    assert session.meta == {
        "task": "task-00001",
        "strategy": "answer",
        "keys": ["k"],
        "lineage": ["s1", "s2"],
        "truncated": False,
        "labels": [],
    }


def test_a_cut_answer_is_kept_and_marked():
    assert outcome(completion(finish="length")).meta["truncated"] is True


def test_a_withheld_answer_is_a_failure_with_its_reason():
    failure = outcome(completion(text="", finish="filtered"))
    assert (failure.reason, failure.transient) == ("filtered", False)


def test_a_failure_stands_for_the_session():
    failure = Failure(key="k", reason="timeout", detail="60 s", transient=True)
    assert outcome(failure) is failure


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("below", "Translate.\n\nGuten Tag"),
        ("labelled", "Translate.\n\nInput:\nGuten Tag"),
        ("before", "Guten Tag\n\nTranslate."),
    ],
)
def test_an_input_is_put_as_asked(form, written):
    strategy = Answer(Answer.Options(input=form))
    assert next(strategy.flow(Task("t", "Translate.", "Guten Tag"), Random(0))).messages[0].content == written
    assert next(strategy.flow(Task("t", "Say it."), Random(0))).messages[0].content == "Say it."


@pytest.mark.parametrize(("given", "forms"), [("Guten Tag", 7), ("", 6)])
def test_varied_forms_are_self_instructs_seven_and_six_and_hold_all(given, forms):
    strategy, task = Answer(Answer.Options(input="varied")), Task("t", "Say $this.", given)
    drawn = {next(strategy.flow(task, Random(seed))).messages[0].content for seed in range(100)}
    assert len(drawn) == forms
    assert all("Say $this." in text and given in text for text in drawn)


def test_thoughts_are_kept_apart_from_the_answer():
    session = outcome(completion("<think>\nA river.\n</think>\n\nThe Danube."))
    assert (session.messages[-1].content, session.meta["thoughts"]) == ("The Danube.", "A river.")


def test_an_answer_cut_inside_its_thoughts_is_no_answer():
    assert outcome(completion("<think>\nA river", finish="length")).reason == "open_thoughts"
