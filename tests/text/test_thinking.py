"""A reasoning model's thoughts, told from its answer in every shape that endpoints use."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import event, given
from hypothesis import strategies as st

from distill.core.jsonl import read_sessions
from distill.engine.mock_server import MockServer
from distill.pipeline.runner import run_recipe
from distill.text.thinking import in_text, split_answer, split_thoughts
from distill.types import Completion, Failure, Message


def completion(text: str, finish: str = "stop", **beside: str) -> Completion:
    return Completion(key="k", text=text, finish=finish, raw={"choices": [{"message": {"content": text, **beside}}]})


@pytest.mark.parametrize(
    "answer",
    [
        completion("<think>\nTwo and two.\n</think>\n\nFour."),
        completion("  <thinking>Two and two.</thinking> Four."),
        completion("Two and two.\n</think>\n\nFour."),
        completion("Four.", reasoning_content="Two and two."),
        completion("\n\nFour.", reasoning="Two and two.\n"),
        completion("<think>\n</think>Four.", reasoning_content="Two and two."),
    ],
)
def test_thoughts_are_the_same_in_every_shape(answer):
    said = split_thoughts(answer)
    assert (said.answer, said.thoughts, said.is_open) == ("Four.", "Two and two.", False)


@pytest.mark.parametrize(
    "text",
    ["Write `<think>` in front.", "A tag such as <think> opens, </think> closes.", "I think </think> is a tag."],
)
def test_tags_inside_a_sentence_are_text(text):
    assert in_text(text) == in_text(text).__class__(text)


FAMILIES = [
    "<THINK>a</THINK>b", "<thoughts>a</thoughts>b", "<ant:thinking>a</ant:thinking>b", "<my_think>a</my_think>b",
    "\n[THINK]a[/THINK]\nb", "◁think▷a◁/think▷b", "a◁/think▷\nb", "a[/THINK]\n\nb", "a\n</seed:think>b",
    "<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>b<|end_of_solution|>",
    "<think>a</think><answer>b", "<think>a</think>\n<answer>\nb\n</answer>",
    "<|start|>assistant<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
    "<|channel|>commentary<|message|>a<|channel|>final <|constrain|>json<|message|>b<|return|>",
    "analysisa\nassistantfinalb",
]  # fmt: skip


@pytest.mark.parametrize("text", FAMILIES)
def test_thoughts_of_every_family_are_none_of_the_answer(text):
    said = in_text(text)
    assert (said.answer, said.thoughts, said.is_open) == ("b", "a", False)


NEGATIVES = [
    ("What does R1 write between <think> and </think>?", "<think>A plan.</think> is an example."),
    ("Explain </think>.", "It ends the thoughts:\n</think>\nThen comes the answer."),
    ("Write XML with the root <reasoning>.", "<reasoning><step>1</step></reasoning>\nDone."),
    ("Write an XML element called thought.", "<thought>Rain.</thought>"),
    ("Give me three HTML tags, with reasoning in the second.", "<reasoning>x</reasoning> is no HTML tag."),
    ("How does Magistral mark its [THINK] blocks?", "[THINK]so[/THINK] comes first."),
    ("What does ◁think▷ mean?", "◁think▷…◁/think▷ holds thoughts."),
    ("Show a harmony message with <|channel|>.", "<|channel|>final<|message|>Hi<|return|>"),
    ("Split at the word assistantfinal.", "analysis|assistantfinal|x"),
    ("Name a tag for an argument.", "<reasoning> would be a good name."),
    ("How do R1's replies look?", "They begin so:\n```\n<think>\nplan\n</think>\n```\nand go on."),
    ("How do replies end their plan?", "```\nplan\n</think>\n```\nis the form."),
    ("Write a poem.", "I thought of rain.\n<thinking>drip</thinking>\nIt fell."),
    ("Which of the two is XML?", "<thinker>a</thinker> and <rethink>b</rethink> both are."),
]


@pytest.mark.parametrize(("asked", "text"), NEGATIVES)
def test_an_answer_about_tags_stays_whole(asked, text):
    for prompt in (asked, (Message("user", asked),)):
        assert in_text(text, prompt) == in_text(text).__class__(text)


def test_a_system_message_that_asks_for_a_tag_does_not_keep_it():
    asked = (Message("system", "Think in <think> tags."), Message("user", "How much is two and two?"))
    assert in_text("<think>a</think>b", asked).answer == "b"


blocks = st.sampled_from(
    [("<{}>", "</{}>", name) for name in ("think", "thinking", "thought", "reasoning", "seed:think")]
    + [("[{}]", "[/{}]", "THINK"), ("◁{}▷", "◁/{}▷", "think"), ("<|channel>{}\n", "<channel|>", "thought")]
)
plain = st.text(st.characters(codec="utf-8", exclude_characters="<>[]◁▷|"), max_size=40)


@given(blocks, plain, plain.filter(str.strip), st.booleans())
def test_a_block_at_the_start_is_thoughts_and_its_tag_in_the_question_is_not(block, thoughts, answer, is_asked):
    opening, closing, name = block
    text = f"{opening.format(name)}{thoughts}{closing.format(name)}{answer}"
    event(f"{opening.format(name)!r}, asked: {is_asked}")
    said = in_text(text, f"What is {opening.format(name)}?" if is_asked else "")
    expected = (text.strip(), "") if is_asked else (answer.strip(), thoughts.strip())
    assert (said.answer, said.thoughts) == expected


def test_blocks_are_thoughts_as_long_as_they_follow_each_other():
    said = in_text("<think>a</think>\n<think>b</think>\nOne.\n<think>c</think>")
    assert (said.answer, said.thoughts) == ("One.\n<think>c</think>", "a\n\nb")


@pytest.mark.parametrize("finish", ["length", "stop"])
def test_an_answer_that_ends_inside_its_thoughts_is_a_failure(finish):
    failure = split_answer(completion("<think>Well, first", finish))
    assert isinstance(failure, Failure)
    assert (failure.key, failure.reason, failure.transient) == ("k", "open_thoughts", False)


def test_thoughts_that_used_up_all_tokens_are_a_failure():
    failure = split_answer(completion("", "length", reasoning_content="Well, first"))
    assert isinstance(failure, Failure)
    assert failure.reason == "only_thoughts"


def test_kept_thoughts_have_one_form():
    shapes = [completion("<think>a</think>b"), completion("b", reasoning_content="a"), completion("a\n</think>\nb")]
    assert {split_answer(shape, "keep").answer for shape in shapes} == {"<think>\na\n</think>\n\nb"}


def test_separate_hands_them_over_and_strip_does_not():
    answer = completion("<think>a</think>b")
    assert [
        (split_answer(answer, how).answer, split_answer(answer, how).thoughts) for how in ("separate", "strip")
    ] == [
        ("b", "a"),
        ("b", ""),
    ]


@pytest.mark.parametrize(
    ("finish", "text", "reason"),
    [
        ("filtered", "A bit", "filtered"),
        ("tool", "Let me look.", "tool_call"),
        ("stop", " \n", "empty"),
        ("length", "", "empty"),
    ],
)
def test_what_is_no_answer_is_a_permanent_failure(finish, text, reason):
    failure = split_answer(completion(text, finish))
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.transient) == (reason, False)


def test_an_answer_without_thoughts_stays_as_it_is():
    for how in ("separate", "strip", "keep"):
        assert split_answer(completion(" Four.\n\n  Indeed. "), how).answer == "Four.\n\n  Indeed."


@pytest.mark.parametrize(
    "raw", [{}, {"choices": []}, {"choices": "no"}, {"choices": [{"message": None}]}, {"choices": [3]}]
)
def test_a_body_of_any_shape_is_survived(raw):
    assert split_thoughts(Completion(key="k", text="Four.", finish="stop", raw=raw)).answer == "Four."


IN_TAGS = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour."}
BESIDE = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}


@pytest.mark.parametrize("message", [IN_TAGS, BESIDE], ids=["in_tags", "beside"])
@pytest.mark.parametrize(
    ("handling", "learned", "apart"),
    [
        ("separate", "Four.", "Two and two."),
        ("strip", "Four.", None),
        ("keep", "<think>\nTwo and two.\n</think>\n\nFour.", None),
    ],
)
def test_a_reasoning_teacher_is_collected_as_the_recipe_says(tmp_path, message, handling, learned, apart):
    reply = {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    (tmp_path / "tasks.txt").write_text("What is two and two?\n")
    with MockServer(answer=lambda body: reply) as server:
        recipe = {
            "name": "thinking",
            "teacher": {"model": "m", "base_url": server.url, "terms": "mine"},
            "collect": {"tasks": "tasks.txt", "test": 0, "thoughts": handling},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        run = run_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run", stages=["collect"])
    (session,) = read_sessions(run / "sessions.jsonl")
    assert (session.messages[-1].content, session.meta.get("thoughts")) == (learned, apart)
