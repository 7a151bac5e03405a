"""Every function that reads a model's text ends within a second on a megabyte of the worst."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from distill.compare.metrics.instruction_checks import KINDS
from distill.compare.metrics.style import features
from distill.text.answer_checks import final_answer, number, same_number, vote
from distill.text.echoes import is_echo, is_repeated, repeats_prompt
from distill.text.judge_replies import GradeScale, read_grade
from distill.text.references import CHECKS, Check
from distill.text.refusals import refusing_phrase
from distill.text.rouge_index import NoveltyIndex
from distill.text.thinking import in_text
from distill.text.tokens import harmless, normalise, rouge_l, rouge_tokens, visible
from distill.text.verdicts import read_verdict
from distill.text.words import comparable, word_count
from distill.text.wrappers import bare, is_no_input, refuses, strip_quotes, strip_wrappers, without_rulers

pytestmark = pytest.mark.slow

SIZE = 1_000_000
PROMPT_LINES = ["Write a task that nobody has written before, please."] * 20


LABELS = Check(labels=("a", "b", "(a*)*b"))
CHECK = {"count": 3, "columns": 3, "rows": 3, "name": "q", "mark": "q", "keys": ["q"]}
PATTERNS = ("sentences", "bullets", "numbered", "table", "sections", "parts", "bold", "json_keys", "quoted")
"""The checks of instructions that search a text by patterns, and what they need."""


def filled(piece: str, *, before: str = "", after: str = "") -> str:
    return before + piece * (SIZE // len(piece)) + after


def words() -> str:
    random = Random(1)
    return " ".join(f"w{random.randrange(10**6)}" for _ in range(SIZE // 7))


TEXTS = {
    "white space": filled(" ", after="x"),
    "line ends": filled("\n", after="x"),
    "dashes": filled("-", after="x"),
    "an open box": filled(" ", before="[[", after="x"),
    "an open result": filled(" ", before="[RESULT]", after="x"),
    "an endless remark": filled("tasks ", before="a\n\nlet me know ", after="\nx"),
    "an endless preface": filled("here is version "),
    "groups of digits": filled(",111"),
    "thoughts": filled("<think>\na</think>\n"),
    "grades": filled("Score: 8\n"),
    "open tags": filled("<A-tag1>"),
    "braces": filled("\\boxed{"),
    "sentence ends": filled(".", after="x"),
    "headings": filled("#\n"),
    "verdicts": filled("Verdict: A. "),
    "closings": filled("so overall the final "),
    "quotes": filled('"'),
    "words": words(),
}


def moved(text: str) -> str:
    """The same text, begun in its middle."""
    return text[SIZE // 2 :] + text[: SIZE // 2]


def near(text: str) -> Any:
    index = NoveltyIndex()
    index.add("a", text)
    return index.near(moved(text))


FUNCTIONS: dict[str, Callable[[str], Any]] = {
    **{function.__name__: function for function in (final_answer, number, vote, comparable, word_count, in_text)},
    **{function.__name__: function for function in (harmless, normalise, visible, bare, is_no_input, refuses)},
    **{function.__name__: function for function in (strip_quotes, strip_wrappers, without_rulers, refusing_phrase)},
    **{f"check {name}": lambda text, check=check: check(text, "(a*)*b", LABELS) for name, check in CHECKS.items()},
    "same_number": lambda text: same_number(text, text),
    "is_echo": lambda text: is_echo(text, [moved(text)]),
    "is_repeated": lambda text: is_repeated(text, [moved(text)]),
    "repeats_prompt": lambda text: repeats_prompt(text, PROMPT_LINES),
    "read_grade": lambda text: read_grade(text, GradeScale(10), texts=[text], tag="tag1"),
    "read_grade, a choice": lambda text: read_grade(text, GradeScale(10, ("A", "B", "tie"))),
    "read_verdict": lambda text: read_verdict(text, texts=[text], tag="tag1"),
    "rouge_l": lambda text: rouge_l(rouge_tokens(text), rouge_tokens(moved(text))),
    "near": near,
    "features": features,
    **{f"follows {kind}": lambda text, kind=kind: KINDS[kind](text, CHECK) for kind in PATTERNS},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_megabyte_of_hostile_text_takes_less_than_a_second(name: str) -> None:
    seconds = {}
    for kind, text in TEXTS.items():
        start = time.process_time()
        FUNCTIONS[name](text)
        seconds[kind] = time.process_time() - start
    assert {kind: taken for kind, taken in seconds.items() if taken >= 1} == {}


def test_a_number_of_thousands_of_digits_is_no_error() -> None:
    assert number(TEXTS["groups of digits"]) is not None


def test_a_second_block_of_thoughts_may_begin_where_the_first_ends() -> None:
    found = in_text("<think>one</think><think>two</think>said")
    assert (found.thoughts, found.answer) == ("one\n\ntwo", "said")


def test_the_last_grade_of_a_long_reply_counts() -> None:
    assert read_grade(f"{'It is long. ' * 5_000}\nScore: 7", GradeScale(10)).score == 7.0
