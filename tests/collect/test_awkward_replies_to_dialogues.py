"""Replies of strong models to strategies that collect dialogues and instances: headings, marks, remarks, refusals."""

from __future__ import annotations

import pytest

from distill.collect.strategies.instances import Instances
from distill.collect.strategies.self_chat import SelfChat
from distill.collect.strategies.user_simulator import UserSimulator
from distill.types import Failure, Request, Task
from tests.support.flowing import play, well_formed

# --- dialogues


TASK = Task("t", "Tea and its kinds.")


TALK = [
    ("user", "What is green tea?"),
    ("assistant", "Tea that was not oxidised."),
    ("user", "And black?"),
    ("assistant", "Oxidised."),
]


def transcript(visitor: str, helper: str, between: str = "\n") -> str:
    marks = {"user": visitor, "assistant": helper}
    return between.join(f"{marks[role]} {text}" for role, text in TALK)


@pytest.mark.parametrize(
    "answer",
    [
        transcript("[Visitor]", "[Helper]"),
        transcript("[Visitor]:", "[Helper]:", "\n\n"),
        transcript("**[Visitor]**", "**[Helper]**", "\n\n"),
        transcript("**Visitor:**", "**Helper:**", "\n\n"),
        transcript("Visitor:", "Helper:"),
        transcript("[visitor]", "[helper]", "\r\n"),
        f"# A talk about tea\n\n{transcript('[Visitor]', '[Helper]')}\n\n---\n\n(End of conversation)",
        f"Here is the conversation:\n\n```\n{transcript('[Visitor]', '[Helper]')}\n```",
        f"```\n{transcript('[Visitor]', '[Helper]')}\n```",
        f"<think>[Visitor] Hm?\n[Helper] No.</think>\n{transcript('[Visitor]', '[Helper]')}",
        f"{transcript('[Visitor]', '[Helper]')}\n[Visitor] Thanks!",
    ],
)
def test_a_transcript_is_read_in_every_dress(answer):
    session, _ = play(SelfChat(SelfChat.Options()), TASK, lambda _: answer)
    assert [(message.role, message.content) for message in session.messages] == TALK


def test_marks_inside_code_part_nothing():
    code = "Like this:\n\n```python\nprint('[Visitor]', \"[Helper]\")\n```"
    session, _ = play(SelfChat(SelfChat.Options()), TASK, lambda _: f"[Visitor] How?\n[Helper] {code}")
    assert session.messages[1].content == code


@pytest.mark.parametrize("answer", ["I'm sorry, but I can't write this.", "[Besucher] Was?\n[Helfer] Tee."])
def test_a_reply_that_is_no_transcript_is_a_failure_that_says_so(answer):
    failure, _ = play(SelfChat(SelfChat.Options()), TASK, lambda _: answer)
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.detail) == ("no_exchange", "no exchange in it: no_marks")


@pytest.mark.parametrize(
    ("said", "second"),
    [
        ('"And what of black tea?"', "And what of black tea?"),
        ("User: And what of black tea?", "And what of black tea?"),
        ("**Visitor:** And what of black tea?", "And what of black tea?"),
        ("<think>What would they ask?</think>\nAnd what of black tea?", "And what of black tea?"),
        ("And what of black tea?\r\n", "And what of black tea?"),
        ("Und schwarzer Tee?", "Und schwarzer Tee?"),
        ("And what of black tea?\n\nAssistant: It is oxidised.", "And what of black tea?"),
        ("[nothing more]", None),
        ("Thank you, that helps!", None),
        ("I'm sorry, but as an AI language model I cannot play a person.", None),
        ("Sure, I'd be happy to help! Green tea is healthy.", None),
        ("", None),
    ],
)
def test_a_simulated_users_turn_is_read_in_every_dress(said, second):
    strategy = UserSimulator(UserSimulator.Options(min_rounds=2, max_rounds=2))
    session, _ = play(
        strategy, TASK, lambda request: said if request.role == "user" else f"Well, {len(request.messages)}."
    )
    assert well_formed(session)
    assert [message.content for message in session.messages[2:3]] == ([] if second is None else [second])


# --- instances


POLITE = [("Go.", "Please go."), ("Sit.", "Please sit.")]


ASKED = "Example 1\nGo.\nOutput: Please go.\nExample 2\nSit.\nOutput: Please sit."


HEADED = "### Example {}\n**Input:**\n{}.\n**Output:**\nPlease {}.\n"


@pytest.mark.parametrize(
    "answer",
    [
        ASKED,
        f"Sure! Here it goes on:\n\n{ASKED}\n\nLet me know if you need more.",
        f"```\n{ASKED}\n```",
        f"<think>Example 1\nNo.\nOutput: Nay.</think>\n{ASKED}",
        ASKED.replace("1\n", "1:\n").replace("2\n", "2:\n").replace(": Please", ":\nPlease").replace("\n", "\r\n"),
        HEADED.format(1, "Go", "go") + HEADED.format(2, "Sit", "sit"),
        "**Example 1**\nInput: Go.\n**Output:** Please go.\n\n**Example 2**\nInput: Sit.\n**Output:** Please sit.",
        "1. Input: Go.\n   Output: Please go.\n2. Input: Sit.\n   Output: Please sit.",
    ],
)
def test_instances_are_read_in_every_dress(answer):
    assert instances(answer, "No") == POLITE


@pytest.mark.parametrize(
    "answer",
    [
        " angry\nYou lost it!\nClass label: calm\nIt came.",
        " **angry**\nYou lost it!\n**Class label:** calm\nInput: It came.",
        "1. Class label: angry\n   Input: You lost it!\n2. Class label: calm\n   Input: It came.",
        "- Class label: angry\r\n  You lost it!\r\n- Class label: calm\r\n  It came.\r\n",
    ],
)
def test_labelled_instances_are_read_in_every_dress(answer):
    assert instances(answer, "Yes.") == [("You lost it!", "angry"), ("It came.", "calm")]


@pytest.mark.parametrize("given", ["<noinput>", "N/A", "None needed", "(no input)"])
def test_an_instance_without_an_input_asks_the_instruction_alone(given):
    assert instances(f"Example 1\nInput: {given}\nOutput: Rivers flow.", "No") == [(None, "Rivers flow.")]


def instances(answer: str, is_label: str) -> list[tuple[str | None, str]]:
    """Inputs and outputs of the sessions; `None` for an input where the instruction stands alone."""

    def said(request: Request) -> str:
        return is_label if request.sampling.max_tokens == 3 else answer

    sessions, _ = play(Instances(Instances.Options(plain_inputs=0)), TASK, said)
    asked = [session.messages[0].content.removeprefix(TASK.instruction).strip() or None for session in sessions]
    return list(zip(asked, [session.messages[1].content for session in sessions], strict=True))


def test_a_refusal_to_make_instances_is_a_failure_that_says_so():
    failure, _ = play(Instances(Instances.Options()), TASK, lambda _: "I'm sorry, but I can't help with that.")
    assert failure.reason == "no_instance"
