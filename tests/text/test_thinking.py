"""A reasoning model's thoughts, told from its answer in every shape that endpoints use."""

from __future__ import annotations

import pytest
import yaml

from distill.core.jsonl import read_sessions
from distill.engine.mock_server import MockServer
from distill.pipeline.runner import run_recipe
from distill.text.thinking import in_text, split_answer, split_thoughts
from distill.types import Completion, Failure


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


def test_several_blocks_are_all_thoughts():
    said = in_text("<think>a</think>One.\n<think>b</think>\nTwo.")
    assert (said.answer, said.thoughts) == ("One.\n\nTwo.", "a\n\nb")


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
