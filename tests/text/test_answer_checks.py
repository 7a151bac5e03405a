"""Final answers: where they stand in a solution, and when two are the same."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.text.answer_checks import final_answer, number, same_number, vote


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("So it is \\boxed{42}.", "42"),
        ("\\boxed{1} no, \\boxed{\\frac{3}{4}}", "3/4"),
        ("Long work.\n#### 1,234", "1,234"),
        ("The answer is (B).", "B"),
        ("**Final answer:** Paris", "Paris"),
        ("First this.\n\nThen that.\n", "Then that"),
        ("", ""),
    ],
)
def test_the_final_answer_is_found(text, final):
    assert final_answer(text) == final


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", Fraction(2469, 2)),
        ("-3/4", Fraction(-3, 4)),
        ("\u22125", Fraction(-5)),
        ("10-3", Fraction(3)),
        ("about .5 litres", Fraction(1, 2)),
        ("$12", Fraction(12)),
        ("none", None),
        ("1/0", None),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert number(text) == value


def test_the_same_number_may_be_written_otherwise():
    assert same_number("Half of it.\nThe answer is 0.5", "1/2")
    assert not same_number("The answer is 0.50001", "1/2")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("**Final Answer:** $7$", "7"),
        ("Answer: 7 (because 3 + 4 = 7 and 9 - 2 = 7, twice)", "7"),
        ("Answer: 7 (3+4)", "7"),
        ("The area is 12 cm times 2 cm.\r\n\r\nAnswer: 24 cm^2\r\n", "24"),
        ("Answer: 7\n\nI hope this helps!", "7"),
        ("Die Antwort ist 7.", "7"),
        ("\u7b54\u6848\u662f7\u3002", "7"),
        ("Resposta: 7", "7"),
        ("<b>x = 7</b>\n\nAnswer: x = 7", "7"),
        ("The answer is 75%.", "75"),
    ],
)
def test_a_number_is_found_however_it_is_announced(text, reference):
    assert same_number(text, reference)


@pytest.mark.parametrize(
    ("text", "reference"), [("Answer: 2^6", "2^5"), ("Answer: 8 (not 7)", "7"), ("Answer: f(7)", "8")]
)
def test_another_number_is_not_the_same(text, reference):
    assert not same_number(text, reference)


def test_a_number_votes_by_its_value_and_a_word_by_its_letters():
    assert len({vote("#### 12"), vote("The answer is 12.0."), vote("So 5 + 7 = 12"), vote("12 apples")}) == 1
    assert vote("The answer is Paris.") == vote("Answer: paris")
    assert vote("Answer: Rome") != vote("Answer: Paris")


@pytest.mark.slow
@given(st.text(max_size=200))
def test_any_text_is_survived(text):
    assert isinstance(vote(text), str)


def test_a_number_of_any_length_is_survived():
    value = number("9" * 5000)
    assert value is None or value < 10**30
