"""A simulated user: what it is told, when it is done, and how falling out of the part is told."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from distill.collect.dialogue import is_farewell, user_turn, without_leak
from distill.collect.strategies.user_simulator import CLOSING, UserSimulator
from distill.core.assets import load
from distill.text.echoes import instructions
from distill.types import Completion, Failure, Message, Request, Sampling, Task
from tests.support.flowing import cut, lost, play, well_formed

TASK = Task("t1", "How do I keep basil alive?", meta={"persona": "A florist.", "lineage": ["s1"]})


TOLD = instructions(*(load(f"strategies/{name}.txt") for name in ("user_simulator", "user_simulator_begin")))


def simulator(**options) -> UserSimulator:
    given = {"min_rounds": 3, "max_rounds": 3, **options}
    return UserSimulator(UserSimulator.Options(**given), sampling=Sampling(max_tokens=99))


def talk(turns: list):
    left = iter(turns)
    return lambda request: next(left) if request.role == "user" else f"On that: {request.messages[-1].content}"


def questions(session) -> list[str]:
    return [message.content for message in session.messages if message.role == "user"]


def test_the_task_opens_and_the_user_goes_on():
    session, asked = play(simulator(), TASK, talk(["And in winter?", "What of slugs?"]))
    assert questions(session) == [TASK.instruction, "And in winter?", "What of slugs?"]
    assert [request.role for request in asked] == ["teacher", "user", "teacher", "user", "teacher"]
    assert session.meta == {
        "task": "t1",
        "strategy": "user_simulator",
        "keys": ["k1", "k2", "k3", "k4", "k5"],
        "lineage": ["s1"],
        "persona": "A florist.",
        "rounds": 3,
        "ended": "rounds",
        "truncated": False,
        "labels": [],
    }


def test_the_user_sees_the_sides_exchanged_under_its_persona():
    _, asked = play(simulator(), TASK, talk(["And in winter?", "What of slugs?"]))
    part, begin, *rest = asked[1].messages
    assert (part.role, "A florist." in part.content, TASK.instruction in part.content) == ("system", True, True)
    assert begin.role == "user"
    assert rest == [Message("assistant", TASK.instruction), Message("user", f"On that: {TASK.instruction}")]


def test_a_simulated_opening_is_asked_too():
    session, asked = play(simulator(opening="simulated"), TASK, talk(["My basil is brown.", "Hm?", "So?"]))
    assert (asked[0].role, questions(session)[0]) == ("user", "My basil is brown.")


def test_rounds_and_persona_are_drawn_from_the_tasks_own_randomness():
    strategy, task = simulator(min_rounds=2, max_rounds=6), Task("t", "Hm?")
    turns = [f"Number {number} is what?" for number in ["one", "two", "three", "four", "five", "six"]]
    drawn = [play(strategy, task, talk(turns), seed=seed)[0].meta for seed in range(40)]
    assert {meta["rounds"] for meta in drawn} == {2, 3, 4, 5, 6}
    assert len({meta["persona"] for meta in drawn}) == 10
    assert drawn[3] == play(strategy, task, talk(turns), seed=3)[0].meta


def test_each_role_has_its_own_sampling():
    _, asked = play(simulator(user_sampling={"temperature": 1.0, "max_tokens": 20}), TASK, talk(["Hm?", "So?"]))
    assert {(request.role, request.sampling.max_tokens) for request in asked} == {("teacher", 99), ("user", 20)}


@pytest.mark.parametrize(
    ("turn", "ended"),
    [
        (CLOSING, "closed"),
        (f"All clear. {CLOSING.upper()}", "closed"),
        ("Thank you so much, goodbye!", "thanks"),
        (TASK.instruction.lower(), "repeated"),
        ("How do I keep my basil alive?", "repeated"),
        ("Hello! How can I assist you today?", "role_leak"),
        ("As an AI language model, I have no plants.", "role_leak"),
        ("You're welcome! Let me know if you have any questions.", "role_leak"),
        ("Assistant: Water it daily.", None),
        ("", "empty_user"),
        (f"On that: {TASK.instruction}", "echo"),
        (f"So, on that: {TASK.instruction[:-1]}.", "echo"),
        ("(The assistant is waiting. Send your first message.)", "prompt_leak"),
        ("You are the one who needs something. Never answer your own questions, never offer help.", "prompt_leak"),
        ("Fine. Send one message at a time, in the person's own voice, usually one to three sentences.", "prompt_leak"),
        (f"You wrote on that: {TASK.instruction} Why so?", None),
        (cut("And what if the"), "cut_user"),
        (lost(transient=False), "failed_http_400"),
        (Completion(key="x", text="", finish="filtered"), "filtered"),
        ("<think>What would a florist ask", "open_thoughts"),
    ],
)
def test_a_turn_that_is_no_users_ends_the_conversation_before_it(turn, ended):
    session, _ = play(simulator(max_rounds=3), TASK, talk([turn, "And then?"]))
    assert session.meta["ended"] == (ended or "rounds")
    assert len(questions(session)) == (1 if ended else 3)
    assert well_formed(session)


def test_both_sides_in_one_turn_are_cut_after_the_users_own():
    both = "User: And in winter?\n\nAssistant: Keep it warm.\nUser: Thanks."
    session, _ = play(simulator(), TASK, talk([both, "What of slugs?"]))
    assert questions(session)[1] == "And in winter?"
    assert session.meta["leaks"] == ["cut"]


def test_speaking_as_the_assistant_is_told_in_meta():
    session, _ = play(simulator(), TASK, talk(["I'm here to help you with your basil."]))
    assert (session.meta["ended"], session.meta["leaks"]) == ("role_leak", ["answered"])


@pytest.mark.parametrize(
    "text",
    [
        "Thanks, but what about winter?",
        "My helper: he waters it every day, is that too much?",
        "I thank you for the list, yet half of it was about soil, and my question was about the light it needs",
        "As an AI enthusiast I want to know how it learns.",
        "Can you help me with a letter?",
        "I want to know something about the light that basil needs in a kitchen that looks north.",
    ],
)
def test_what_a_user_may_well_say_goes_on(text):
    turn = user_turn(Completion(key="k", text=text, finish="stop"), [], prompt_lines=TOLD)
    assert (turn.text, turn.ended, turn.leak) == (text, None, None)


def test_only_a_short_turn_is_a_farewell():
    assert is_farewell("Great, thanks a lot!")
    assert not is_farewell("Thanks! " + "And one more thing that I would like to tell you about " * 2)


@pytest.mark.parametrize("label", ["User:", "**Human:**", "[Customer]", "<|im_start|>", "visitor :"])
def test_a_label_in_front_is_taken_off(label):
    assert without_leak(f"{label} Why?") == ("Why?", None)


def test_thoughts_never_enter_the_history():
    def answer(request: Request) -> str:
        return "And then?" if request.role == "user" else "<think>Hm.</think>Water it."

    session, asked = play(simulator(min_rounds=1, max_rounds=2), TASK, answer, seed=1)
    assert not any("Hm." in message.content for request in asked for message in request.messages)
    assert session.messages[1].content == "Water it."


def test_a_failure_that_may_pass_is_the_tasks():
    assert play(simulator(), TASK, talk([lost(transient=True)]))[0] == lost(transient=True)


def test_a_conversation_that_never_begins_is_a_failure():
    failure, _ = play(simulator(opening="simulated"), TASK, talk([CLOSING]))
    assert isinstance(failure, Failure)
    assert (failure.reason, "closed" in failure.detail) == ("no_exchange", True)


def test_a_range_of_rounds_the_wrong_way_round_is_refused():
    with pytest.raises(ValidationError, match=re.escape("min_rounds 5 is above max_rounds 2")):
        UserSimulator.Options(min_rounds=5, max_rounds=2)
