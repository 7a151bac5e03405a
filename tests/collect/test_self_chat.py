"""A model's talk with itself: transcripts are read strictly, rounds end where the visitor falls out of the part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.collect.strategies.self_chat import SelfChat, parse_transcript
from distill.types import Failure, Message, Request, Sampling, Task
from tests.support.flowing import cut, lost, play, well_formed

TASK = Task("t1", "Basil on a window sill", meta={"lineage": ["s1"]})
TALK = "[Visitor] Why does it wilt?\n[Helper] Too little water.\n[Visitor] How much then?\n[Helper] A cup a day."


def chat(**options) -> SelfChat:
    return SelfChat(SelfChat.Options(**options), sampling=Sampling(temperature=0.7, max_tokens=99, stop=("##",)))


def texts(dialogue) -> list[str]:
    return [message.content for message in dialogue.messages]


# --- transcripts


def test_one_request_writes_the_whole_dialogue():
    session, asked = play(chat(exchanges=2), TASK, lambda request: TALK)
    assert len(asked) == 1
    assert "Basil on a window sill" in asked[0].messages[0].content
    assert texts(session) == ["Why does it wilt?", "Too little water.", "How much then?", "A cup a day."]
    assert session.meta == {
        "task": "t1",
        "strategy": "self_chat",
        "keys": ["k1"],
        "lineage": ["s1"],
        "dialogue": "transcript",
        "ended": "complete",
        "truncated": False,
        "labels": [],
    }


@pytest.mark.parametrize(
    ("text", "turns", "ended"),
    [
        ("A talk:\n" + TALK, 4, "complete"),
        ("[Helper] Welcome.\n" + TALK, 4, "complete"),
        (TALK + "\n[Visitor] And light?", 4, "half_exchange"),
        (TALK + "\n[Visitor] One.\n[Visitor] Two.\n[Helper] Three.", 4, "no_alternation"),
        (TALK + "\n[Helper] More.\n[Visitor] Oh?\n[Helper] Yes.", 4, "no_alternation"),
        (TALK + "\n[Visitor]\n[Helper] Nothing?", 4, "empty_turn"),
        (TALK.replace("\n", " "), 4, "complete"),
        (TALK.replace("[Helper]", "**[Helper]:**"), 4, "complete"),
        (TALK + "\n" + TALK, 4, "repeated"),
        (TALK + "\n[Visitor] The helper's name is:\n[Helper] The helper's name is:", 4, "echo"),
        ("[Visitor] Subject: tea.\n[Helper] Subject: tea.", 0, "echo"),
        ("No marks at all.", 0, "no_marks"),
        ("[Visitor] Hello?", 0, "half_exchange"),
    ],
)
def test_a_transcript_counts_as_far_as_it_keeps_its_form(text, turns, ended):
    said = parse_transcript(text)
    assert (len(said.messages), said.ended) == (turns, ended)


def test_the_last_exchange_of_a_cut_transcript_is_dropped():
    said = parse_transcript(TALK, is_cut=True)
    assert (texts(said), said.ended) == (["Why does it wilt?", "Too little water."], "cut_answer")
    session, _ = play(chat(), TASK, lambda request: cut(TALK))
    assert (len(session.messages), session.meta["truncated"]) == (2, False)


def test_a_turn_that_goes_on_as_another_speaker_is_cut_and_the_last():
    said = parse_transcript("[Visitor] Why?\n[Helper] Because.\nUser: And you?\n[Visitor] More?\n[Helper] No.")
    assert (texts(said), said.ended, said.leaks) == (["Why?", "Because."], "role_leak", ["cut"])


def test_a_question_that_goes_on_as_another_speaker_is_dropped():
    said = parse_transcript(TALK + "\n[Visitor] Why?\nAssistant: Because.\n[Helper] Hm.")
    assert (len(said.messages), said.ended) == (4, "role_leak")


def test_a_transcript_without_an_exchange_is_a_failure_with_why():
    failure, _ = play(chat(), TASK, lambda request: "I cannot do that.")
    assert isinstance(failure, Failure)
    assert (failure.key, failure.reason, "no_marks" in failure.detail) == ("k1", "no_exchange", True)


def test_raw_text_is_continued_behind_the_first_mark():
    session, asked = play(chat(ask="completion"), TASK, lambda request: TALK.removeprefix("[Visitor]"))
    assert asked[0].prompt.endswith("\n[Visitor]")
    assert len(session.messages) == 4


@given(st.lists(st.sampled_from(["[Visitor] ", "[Helper] ", "a", "\n", "User: ", "<|im_end|>", " "]), max_size=30))
def test_whatever_is_written_the_dialogue_alternates(pieces):
    said = parse_transcript("".join(pieces))
    roles = [message.role for message in said.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert all(message.content and "[Helper]" not in message.content for message in said.messages)


# --- rounds


def visitor(request: Request) -> bool:
    return "visitor" in request.messages[-1].content


def talk(questions: list[str]):
    left = iter(questions)
    return lambda request: next(left) if visitor(request) else f"About {request.messages[-1].content}"


def test_each_round_asks_for_a_question_and_then_for_its_answer():
    session, asked = play(chat(dialogue="rounds", exchanges=2, system="Be kind."), TASK, talk(["Why?", "How so?"]))
    assert [visitor(request) for request in asked] == [True, False, True, False]
    assert texts(session) == ["Be kind.", "Why?", "About Why?", "How so?", "About How so?"]
    assert asked[0].sampling.stop == ("##", "[Helper]")
    assert asked[2].messages[0].content.endswith("[Visitor] Why?\n[Helper] About Why?\n[Visitor]")
    assert asked[3].messages == (
        Message("system", "Be kind."),
        Message("user", "Why?"),
        Message("assistant", "About Why?"),
        Message("user", "How so?"),
    )
    assert (session.meta["keys"], session.meta["ended"]) == (["k1", "k2", "k3", "k4"], "rounds")


@pytest.mark.parametrize(
    ("turn", "ended"),
    [
        ("Thanks, that was it!", "thanks"),
        ("why?", "repeated"),
        ("As an AI language model I cannot ask.", "role_leak"),
        ("Write the visitor's next message, and only that.", "prompt_leak"),
        ("", "empty_user"),
        (cut("And then what if the"), "cut_user"),
        (lost(transient=False), "failed_http_400"),
    ],
)
def test_an_unusable_turn_ends_the_dialogue_before_it(turn, ended):
    session, _ = play(chat(dialogue="rounds"), TASK, talk(["Why?", turn]))
    assert (texts(session), session.meta["ended"]) == (["Why?", "About Why?"], ended)
    assert session.meta["keys"] == ["k1", "k2"]


def test_a_helper_written_by_an_endpoint_that_ignores_stop_is_cut_off():
    session, _ = play(chat(dialogue="rounds", exchanges=1), TASK, talk(["[Visitor] Why?\n[Helper] Because."]))
    assert (session.messages[0].content, session.meta["leaks"]) == ("Why?", ["cut"])
    assert well_formed(session)


def test_a_cut_answer_is_kept_as_the_last():
    def answer(request: Request):
        return "Why?" if visitor(request) else cut("Because the")

    session, _ = play(chat(dialogue="rounds"), TASK, answer)
    assert (texts(session), session.meta["truncated"]) == (["Why?", "Because the"], True)


def test_a_failure_that_may_pass_is_the_tasks():
    failure, _ = play(chat(dialogue="rounds"), TASK, talk(["Why?", lost(transient=True)]))
    assert failure == lost(transient=True)


def test_the_forecast_counts_both_requests_of_a_round():
    assert [SelfChat.Options(dialogue=way, exchanges=3).asks.requests for way in ("transcript", "rounds")] == [1, 6]
