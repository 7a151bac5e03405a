"""References: where they are read, which check holds an answer against them, and what is wrong with some."""

from __future__ import annotations

import pytest

from distill.text import references
from distill.text.references import Check, read

LABELS = ("refund", "delivery", "spam", "not spam", "billing_issue", "退款")


def right(reference, text: str, **check) -> bool:
    given = read({"reference": reference}, Check(**check))
    assert given is not None
    assert given.fault() is None
    return given.passes(text)


@pytest.mark.parametrize(
    ("reference", "check", "passing", "failing"),
    [
        # by the type of the reference
        (12, {}, "It is\n#### 12.0", "13"),
        (1e-05, {}, "The answer is 0.00001", "5"),
        ("1/2", {}, "So 0.5", "0.51"),
        ("$12", {}, "12 dollars", "11"),
        ("Paris", {}, "Answer: paris.", "Rome"),
        ("GPT-4", {}, "GPT-4", "It is 4"),
        (True, {}, "true", "false"),
        ({"a": 1, "b": [True]}, {}, 'So: {"b": [true], "a": 1.0}', '{"a": true, "b": [true]}'),
        (["Rome", 7], {}, "7", "8"),
        ([[1, 2]], {}, "[1, 2]", "[2, 1]"),
        # by a check
        (0.5, {"tolerance": 0.01}, "0.51", "0.52"),
        ("The Beatles!", {"kind": "normalised"}, "beatles", "the beagles"),
        ("red, blue", {"kind": "contains"}, "They are Red,  blue and green.", "red"),
        (r"^\d{3}-\d{4}$", {"kind": "regex"}, "555-1234", "5555-1234"),
        ('{"a": 1}', {"kind": "json"}, '```json\n{"a": 1}\n```', "a: 1"),
        ("refund", {"labels": LABELS}, "It is a Refund, I think", "a refund or a delivery"),
        ("spam", {"labels": LABELS}, "Label: spam", "This is not spam."),
        ("not spam", {"labels": LABELS}, "This is not spam.", "spam"),
        ("billing_issue", {"labels": LABELS}, "**Billing issue**", "an issue"),
        ("退款", {"labels": LABELS}, "这是退款问题", "这是问题"),
        ("refund", {"kind": "choice"}, "Refund.", "No refund at all"),
        ("7", {}, "<think>8 or 9?</think>7", "<think>7</think>8"),
    ],
)
def test_a_check_tells_right_answers_from_wrong_ones(reference, check, passing, failing):
    assert (right(reference, passing, **check), right(reference, failing, **check)) == (True, False)


@pytest.mark.parametrize(
    ("meta", "accepted"),
    [
        ({"reference": "a", "answer": "b"}, ("a",)),
        ({"answer": 12}, (12,)),  # of older tasks
        ({"reference": ["a", " ", "b"]}, ("a", "b")),
        ({"reference": ["first turn", "second turn"], "turns": ["x", "y"]}, ("first turn",)),  # MT-Bench
        ({"reference": [None, "second turn"], "turns": ["x", "y"]}, None),
        ({"reference": " "}, None),
        ({}, None),
    ],
)
def test_one_function_reads_every_form_of_reference(meta, accepted):
    reference = read(meta, Check())
    assert (reference.accepted if reference else None) == accepted


def test_a_rows_own_checks_go_before_the_default_and_all_of_them_must_pass():
    meta = {"reference": "12", "checks": [{"kind": "contains"}, {"kind": "numeric", "tolerance": 1}, {"kind": "lines"}]}
    reference = read(meta, Check("exact"))
    assert reference.checks == (Check("contains"), Check("numeric", 1))
    assert [reference.passes(text) for text in ("12 or 13", "It is 12.", "13")] == [True, True, False]


@pytest.mark.parametrize(
    ("meta", "check", "fault"),
    [
        ({}, {}, "it has no reference"),
        (
            {"reference": "refnd"},
            {"labels": LABELS},
            'the reference "refnd" is none of the labels; did you mean "refund"?',
        ),
        ({"reference": "x"}, {"labels": ("a", "b")}, 'the reference "x" is none of the labels a, b'),
        (
            {"reference": "Paris"},
            {"kind": "numeric"},
            'the reference "Paris" is no number, as the check `numeric` needs',
        ),
        ({"reference": {"a": 1}}, {"kind": "exact"}, "is JSON, and the check `exact` needs a text or a number"),
        ({"reference": "a: 1"}, {"kind": "json"}, 'the reference "a: 1" is no JSON, as the check `json` needs'),
        ({"reference": 7}, {"kind": "regex"}, "the reference 7 is no text, as the check `regex` needs"),
        ({"reference": "Take the sum of both. " * 9}, {}, "is prose; give a check, such as `contains` or `numeric`"),
        ({"reference": "a" * 300}, {"kind": "regex"}, "is a pattern of 300 characters, at most 200 are taken"),
        ({"reference": "(?=a)"}, {"kind": "regex"}, "it has no look-arounds and no back-references"),
        ({"reference": 1, "checks": [{"kind": "numeric", "tolerance": "x"}]}, {}, 'tolerance "x"; expected a number'),
        ({"reference": 1, "checks": [{"kind": "choice", "labels": "a"}]}, {}, 'labels "a"; expected a list of texts'),
        (
            {"reference": 1, "checks": [{"kind": "exact", "case": 1}]},
            {},
            "unknown key 'case'; expected kind, tolerance",
        ),
    ],
)
def test_a_reference_that_cannot_be_checked_has_a_reason_on_one_line(meta, check, fault):
    reason = references.fault(meta, Check(**check))
    assert fault in reason
    assert "\n" not in reason


def test_the_fields_of_json_are_counted_with_their_places():
    reference = read({"reference": {"name": "Ada", "tags": ["a", "b"], "at": {"city": "Bonn"}}}, Check())
    assert reference.field_f1('{"tags": ["b", "a"], "name": "Ada", "at": {"city": "Bonn"}}') == 1
    assert reference.field_f1('{"name": "Ada", "city": "Bonn"}') == 2 * 1 / (2 + 4)
    assert reference.field_f1("Ada, Bonn") == 0
    assert reference.field_f1("[" * 900 + "]" * 900) == 0
    assert read({"reference": "Ada"}, Check()).field_f1("Ada") is None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000, "NaN", "9" * 5_000, "\ud800"])
def test_no_answer_breaks_a_check(text):
    for kind, reference in {**dict.fromkeys(references.KINDS, "b"), "numeric": 5, "json": {"b": 1}}.items():
        assert not right(reference, text, kind=kind, labels=("c", "b"))
