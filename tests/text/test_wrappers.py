"""What teachers put around what they were asked for, and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.text.wrappers import bare, is_no_input, refuses, strip_quotes, strip_wrappers, without_rulers

LIST = "TASK 1: Explain bees.\n\nTASK 2: Explain ants."


@pytest.mark.parametrize(
    "text",
    [
        LIST,
        LIST.replace("\n", "\r\n"),
        f"\n {LIST}\n\n",
        f"```\n{LIST}\n```",
        f"```text\n{LIST}\n```\n",
        f"~~~\n{LIST}\n~~~",
        f"{LIST}\n\nLet me know if you'd like more tasks!",
        f"{LIST}\n\nPlease let me know if you need any more.",
        f"{LIST}\n\n---\n\nI hope this list helps!",
        f"{LIST}\n\n*These tasks vary in topic and difficulty.*",
        f"{LIST}\n\nThat completes the batch of 20.",
        f"{LIST}\n\n(End of list)",
    ],
)
def test_a_list_is_freed_of_its_frame(text):
    assert strip_wrappers(text) == LIST


@pytest.mark.parametrize(
    "text",
    [
        "Explain this code:\n\n```\nx = 1\n```",
        "```\na\n```\nand\n```\nb\n```",
        "TASK 1: Shorten this mail:\n\nDear Ann,\n\nPlease let me know if you need more information.",
        "TASK 1: Say what is wrong.\n\nI hope to hear from you.",
        "Let me know if you'd like more tasks!",
        "TASK 1: Which of them?\n\nThese are the options: a, b.",
    ],
)
def test_material_and_single_paragraphs_are_no_frame(text):
    assert strip_wrappers(text) == text


@pytest.mark.parametrize(
    "text",
    ["Name a bird.", '"Name a bird."', "\u201cName a bird.\u201d", "Sure! Here's a harder version:\n\nName a bird.",
     "Certainly.\nName a bird.", 'Here is the revised prompt:\n\n"Name a bird."', "```\nName a bird.\n```"],
)  # fmt: skip
def test_a_single_text_is_freed_of_greeting_and_quotation_marks(text):
    assert bare(text) == "Name a bird."


@pytest.mark.parametrize(
    "text",
    [
        '"Owl" and "wren": which is larger?',
        "Here is a list: owl, wren. Sort it.",
        "Here are the sales:\n\n3, 5\n\nAdd them.",
        'He said "owl"',
        "Sure is a word. Use it.",
    ],
)
def test_quotations_and_beginnings_of_its_own_stay(text):
    assert bare(text) == strip_quotes(text) == text


@pytest.mark.parametrize(
    "text",
    ["I'm sorry, but I can't help with that.", "Sorry, I cannot do this.", "I cannot rewrite this instruction.",
     "I can\u2019t assist with that request.", "I apologize, but no.", "As an AI language model, I have no opinions.",
     "I am unable to do so.", "I'm sorry, I can't create that.", "Apologies, but this is out of bounds."],
)  # fmt: skip
def test_a_refusal_is_told(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    ["Write an apology that begins with \"I'm sorry\".", "Sorry seems to be the hardest word: who sang it?",
     "I can never remember the planets. Help me.", "Explain why I cannot tickle myself.", "As an aide, plan a trip.",
     "I can't sleep at night. What helps?",
     "I'm sorry I broke my neighbour's vase. Write her a note.", "Apologies for the late reply: is this polite?"],
)  # fmt: skip
def test_an_instruction_about_refusing_is_none(text):
    assert not refuses(text)


@pytest.mark.parametrize(
    "text",
    ["", "<noinput>", "<NoInput>", "# <noinput>", "`<noinput>`", "< no input >", "No input", "no_input", "N/A",
     "n/a.", "None.", "(none)",
     "None needed.", "No input required", "Not applicable", "-", "\u2014", '""', "[none provided]"],
)  # fmt: skip
def test_every_way_to_say_that_there_is_no_input_is_one(text):
    assert is_no_input(text)


@pytest.mark.parametrize(
    "text", ["None of us came.", "No", "\U0001f389\U0001f389", "+", "NA + Cl", "no inputs were lost"]
)
def test_an_input_that_only_begins_so_is_an_input(text):
    assert not is_no_input(text)


def test_lines_that_only_separate_are_taken_off_the_end():
    assert without_rulers("a\n---\nb\n\n###\n***\n") == "a\n---\nb"


@given(st.text())
def test_what_is_freed_once_stays_as_it_is_without_its_last_paragraph(text):
    assert strip_wrappers(text) in text.replace("\r\n", "\n")
