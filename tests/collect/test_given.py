"""Sessions of answers that tasks bring along."""

from __future__ import annotations

import pytest

from distill.collect.strategies.given import Given
from distill.types import Failure, Message, Task
from tests.support.flowing import play


def given(meta: dict, **options):
    task = Task("t1", "Translate.", "Hallo", {"lineage": ["s1"], **meta})
    return play(Given(Given.Options(**options)), task, lambda request: pytest.fail("somebody was asked"))


def test_the_tasks_own_output_is_the_answer_and_nobody_is_asked():
    session, asked = given({"output": " Hello. ", "key": "abc"})
    assert asked == []
    assert session.messages == (Message("user", "Translate.\n\nHallo"), Message("assistant", "Hello."))
    assert session.meta == {
        "task": "t1",
        "strategy": "given",
        "keys": ["abc"],
        "lineage": ["s1"],
        "truncated": False,
        "labels": [],
    }


@pytest.mark.parametrize("meta", [{}, {"output": ""}, {"output": " \n"}, {"output": 3}, {"output": None}])
def test_a_task_without_an_output_is_a_failure(meta):
    failure, _ = given(meta)
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.transient) == ("no_output", False)


def test_a_system_message_and_a_form_are_put_around_it():
    session, _ = given({"output": "Hello."}, system="Be brief.", input="labelled")
    assert [message.content for message in session.messages] == ["Be brief.", "Translate.\n\nInput:\nHallo", "Hello."]


def test_a_cut_output_is_marked():
    assert given({"output": "Hel", "truncated": True})[0].meta["truncated"] is True


def test_the_forecast_is_nothing():
    assert Given.Options().asks.requests == 0
