"""Instructions that a program can check: each kind's right and wrong answers, and the shipped prompts."""

from __future__ import annotations

import json
import random

import pytest

from distill.compare.metrics import ModelAnswer, Sample
from distill.compare.metrics.instruction_checks import KINDS, follows, follows_loosely
from distill.compare.metrics.instructions import Instructions
from distill.core import assets
from distill.errors import RecipeError
from distill.types import Message

CASES: dict[str, tuple[dict, list[str], list[str]]] = {
    "words_at_least": ({"count": 3}, ["one two three", "a b c d", "1 2 3"], ["one two", "one - two", "• one two"]),
    "words_at_most": ({"count": 3}, ["one", "one two three", "one — two — three"], ["", "a b c d", "a\nb\nc\nd"]),
    "words_between": ({"least": 2, "most": 3}, ["a b", "a b c", "- a b"], ["a", "a b c d", "- a"]),
    "sentences": (
        {"count": 2},
        [
            "One. Two.",
            "Dr. Ray came. He sat.",
            "It costs 3.50 now! Really?",
            'He said "No." Then he left',
            "A. B. Lee ran. He won.",
        ],
        ["One.", "One. Two. Three.", "One; two", "One. Two. And a tail"],
    ),
    "paragraphs": ({"count": 2}, ["a\n\nb", "a\nb\n\n\n\nc", "\n\na\n \nb\n\n"], ["a\nb", "a\n\nb\n\nc", "a"]),
    "bullets": (
        {"count": 2},
        ["- a\n- b", "Here:\n* a\n* b\nDone.", "• a\n\n• b"],
        ["- a", "-a\n-b", "1. a\n2. b", "- a\n- b\n- c"],
    ),
    "numbered": (
        {"count": 2},
        ["1. a\n2. b", "1) a\n\n2) b", "So:\n1. a\n2. b"],
        ["1. a", "1. a\n1. b", "1. a\n3. b", "1.a\n2.b"],
    ),
    "includes": (
        {"words": ["sea", "old man"]},
        ["The Sea. An old man.", "sea, old man", "OLD MAN at sea"],
        ["seas and an old man", "the sea", "old\nman by the sea"],
    ),
    "excludes": ({"words": ["rain"]}, ["It is dry.", "A train came.", "Rainy days."], ["The rain fell.", "RAIN!", ""]),
    "word_times": (
        {"word": "tick", "count": 2},
        ["Tick, tick.", "tick-tick", "a tick and a tick"],
        ["tick", "ticktick", "tick tick tick"],
    ),
    "starts_with": (
        {"text": "In short,"},
        ["In short, no.", "\nIn short, yes", "In short,"],
        ["in short, no", "So: In short, no", ""],
    ),
    "ends_with": (
        {"text": "The end."},
        ["So. The end.", "The end.\n", "X\nThe end."],
        ["The end", "The end. Or not.", "the end."],
    ),
    "json_keys": (
        {"keys": ["a", "b"]},
        ['{"a": 1, "b": 0}', '```json\n{"b": null, "a": []}\n```', ' {"a":"", "b":false} '],
        ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', 'Here: {"a": 1, "b": 2}', '["a", "b"]', "{'a': 1, 'b': 2}"],
    ),
    "lowercase": ({}, ["all small.", "année 3", "a, b"], ["All small.", "123", "aB"]),
    "uppercase": ({}, ["ALL BIG!", "É 3", "A, B"], ["ALL BIg", "123", "ab"]),
    "no_commas": ({}, ["one and two", "a; b", "1.5"], ["one, two", "1,5", "一，二"]),
    "heading_first": ({}, ["# Title\nText", "\n# T", "# A # B"], ["## Title", "Text\n# Title", "#Title", "#"]),
    "sections": (
        {"name": "Part", "count": 2},
        ["Part 1\na\nPart 2\nb", "## Part 1: X\n\n**Part 2** Y", "part 1\npart 2"],
        ["Part 1\na", "Part 2\nPart 1", "Part 1\nPart 2\nPart 3", "In Part 1 and Part 2"],
    ),
    "quoted": ({}, ['"All of it."', "“All of it.”", ' "x" '], ['"a" and "b"', 'He said "no"', '""', '"open']),
    "placeholders": (
        {"count": 2},
        ["[name], [date]", "Dear [your name]: [x]", "[a][b][c]"],
        ["[name] and [name]", "name, date", "[]  [ok]"],
    ),
    "postscript": (
        {},
        ["Hi.\nP.S. Bye.", "Hi.\n\nP. S. Bye", "P.S. only"],
        ["Hi. P.S. Bye.", "P.S. a\nmore", "Hi.\nP.S.", "PS bye"],
    ),
    "one_of": ({"options": ["yes", "no"]}, ["yes", " No. ", "YES"], ["yes, it is", "maybe", "yes no"]),
    "table": (
        {"columns": 2, "rows": 1},
        ["| a | b |\n|---|---|\n| 1 | 2 |", "Here:\n| a | b |\n| :-- | --: |\n| 1 | 2 |\nEnd", "|a|b|\n|-|-|\n|1|2|"],
        ["| a | b |\n| 1 | 2 |", "| a |\n|---|\n| 1 |", "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |", "a, b"],
    ),
    "code_block": (
        {"language": "python"},
        ["```python\nx = 1\n```", "See:\n```Python\nx\n```\nDone", "```bash\nls\n```\n```python\ny\n```"],
        ["```\nx = 1\n```", "```python\n\n```", "x = 1", "```python\nx = 1"],
    ),
    "without_letter": ({"letter": "a"}, ["The dog ran.".replace("a", "u"), "My pup", "Één"], ["A dog", "cat", "123"]),
    "spells": (
        {"word": "cat"},
        ["Come\nand\ntell", "- Cold\n- air\n- too", "C\n\nA\n\nT"],
        ["Come and tell", "a\nb\nc", "Come\nand\ntell\nus"],
    ),
    "bold": (
        {"count": 2},
        ["**a** and **b**", "- **x y**\n- **z**", "**a****b**"],
        ["**a**", "__a__ __b__", "**a** **b** **c**"],
    ),
    "question_last": ({}, ["So what?", "A. B? ", "?"], ["What? No.", "none", "what"]),
    "parts": (
        {"mark": "***", "count": 2},
        ["a\n***\nb", "a b\n  ***  \nc\nd", "1\n***\n2"],
        ["a *** b", "a\n***\n", "a\n***\nb\n***\nc", "a"],
    ),
    "lines": ({"count": 2}, ["a\nb", "a\n\nb\n", "- a\n- b"], ["a", "a\nb\nc", "a b"]),
}


def test_every_kind_has_cases():
    assert set(CASES) == set(KINDS)
    assert all(len(right) >= 3 and len(wrong) >= 3 for _, right, wrong in CASES.values())


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, (_, right, _) in CASES.items() for text in right])
def test_an_answer_that_follows_is_found_to(kind, text):
    assert follows(text, {"kind": kind, **CASES[kind][0]})


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, (_, _, wrong) in CASES.items() for text in wrong])
def test_an_answer_that_does_not_follow_is_found_not_to(kind, text):
    assert not follows(text, {"kind": kind, **CASES[kind][0]})


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_answer_follows_nothing(kind):
    assert not follows(" \n ", {"kind": kind, **CASES[kind][0]})


def test_an_introduction_costs_nothing_loosely():
    check = {"kind": "starts_with", "text": "In short,"}
    assert not follows("Sure, here it is:\nIn short, no.", check)
    assert follows_loosely("Sure, here it is:\nIn short, no.", check)
    assert follows_loosely("**In short,** no.\nI hope this helps.", check)
    assert not follows_loosely("No.", check)


def test_a_check_decides_the_same_every_time():
    random.seed(1)
    first = [follows(text, {"kind": kind, **options}) for kind, (options, right, _) in CASES.items() for text in right]
    random.seed(2)
    again = [follows(text, {"kind": kind, **options}) for kind, (options, right, _) in CASES.items() for text in right]
    assert first == again


@pytest.fixture(scope="module")
def shipped() -> list[dict]:
    return [json.loads(line) for line in assets.load("instructions.jsonl").splitlines()]


def test_the_shipped_prompts_cover_all_kinds_and_differ(shipped):
    assert len(shipped) >= 60
    assert {check["kind"] for row in shipped for check in row["checks"]} == set(KINDS)
    assert len({row["id"] for row in shipped}) == len({row["turns"][0] for row in shipped}) == len(shipped)
    assert list(Instructions().prompts()) == shipped


def test_every_number_and_word_that_is_checked_is_asked_for(shipped):
    numbers = dict(enumerate(("zero", "one", "two", "three", "four", "five", "six"), start=0))
    for row in shipped:
        text = row["turns"][0].lower()
        for check in row["checks"]:
            told = [
                *check.get("words", []),
                *(check[name] for name in ("text", "word", "letter", "mark") if name in check),
            ]
            if check["kind"] != "includes":  # such as the colours of the rainbow, which a right answer holds
                assert all(str(each).lower() in text for each in told), row["id"]
            if check["kind"] not in ("lines", "parts", "sections", "numbered", "table") and "count" in check:
                count = check["count"]
                assert str(count) in text or numbers.get(count, "") in text or {2: "twice"}.get(count, "§") in text, (
                    row["id"]
                )


def sample(text: str, *checks: dict) -> Sample:
    return Sample((Message("user", "Do."),), "student", ModelAnswer(text, "stop"), None, checks=checks)


def test_all_instructions_of_a_prompt_must_be_followed():
    checks = ({"kind": "lowercase"}, {"kind": "no_commas"})
    assert Instructions().score(sample("small, words", *checks)) == {
        "instructions": 0.0,
        "instructions_loose": 0.0,
        "instructions_each": 0.5,
    }
    assert Instructions().score(sample("small words", *checks))["instructions"] == 1.0


def test_a_prompt_without_checks_has_no_score():
    assert Instructions().score(sample("Anything.")) == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"turns": ["Hi."]}', "line 1: no `checks`"),
        ('{"turns": ["Hi."], "checks": [{"kind": "rhymes"}]}', "unknown kind 'rhymes'"),
        ('{"turns": ["Hi."], "checks": [{"kind": "bullets"}]}', "`bullets` lacks or misuses 'count'"),
        ('{"turns": ["Hi."], "checks": [{"kind": "code_block"}]}', "`code_block` lacks or misuses 'language'"),
        ('{"turns": ["Hi."], "checks": [{"kind": "words_between", "least": 9}]}', "lacks or misuses 'most'"),
        ('{"turns": ["Hi."], "checks": [{"kind": "json_keys", "keys": 3}]}', "`json_keys` lacks or misuses"),
        ('{"turns": ["Hi."], "checks": [{"kind": "without_letter", "letter": 3}]}', "lacks or misuses"),
        ("no json", "not JSON"),
    ],
)
def test_a_bad_row_of_ones_own_prompts_is_told_by_its_line(tmp_path, row, message):
    (tmp_path / "mine.jsonl").write_text(row + "\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        list(Instructions(Instructions.Options(prompts=str(tmp_path / "mine.jsonl"))).prompts())
