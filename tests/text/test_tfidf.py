"""Texts about the same: cosines by hand, whatever the order, and never the row itself."""

from __future__ import annotations

import math

import pytest

from distill.text.tfidf import Weights, cosine, nearest

ROWS = [
    ("oak", "Describe an old oak tree"),
    ("elm", "Describe an elm tree in spring"),
    ("sum", "Add two numbers in Python"),
    ("tea", "How is green tea made"),
]


def test_the_cosine_equals_the_one_by_hand():
    weights = Weights.of(["red tea", "green tea", "red sun"])
    idf = {"red": math.log(4 / 3) + 1, "tea": math.log(4 / 3) + 1, "green": math.log(4 / 2) + 1}
    one, other = (idf["red"], idf["tea"]), (idf["green"], idf["tea"])
    expected = idf["tea"] ** 2 / (math.hypot(*one) * math.hypot(*other))
    assert cosine(weights.vector("red tea"), weights.vector("green tea")) == pytest.approx(expected)
    assert cosine(weights.vector("tea tea red"), weights.vector("tea tea red")) == pytest.approx(1.0)


def test_the_nearest_rows_come_first_and_strangers_not_at_all():
    found = nearest(["Tell me of a tree, an oak", "sing"], ROWS, count=2)
    assert [one.id for one in found[0]] == ["oak", "elm"]
    assert found[0][0].similarity > found[0][1].similarity > 0
    assert found[1] == []


def test_a_row_is_not_its_own_neighbour():
    found = nearest([ROWS[0][1]], ROWS, count=1, own_ids=["oak"])
    assert [one.id for one in found[0]] == ["elm"]


def test_equal_rows_keep_the_order_of_the_file():
    twice = [("first", "green tea"), ("second", "green tea"), ("third", "black coffee")]
    found = nearest(["green tea"], twice, count=2)
    assert [one.id for one in found[0]] == ["first", "second"]


def test_words_that_stand_everywhere_say_nothing():
    many = [(str(n), f"please describe word{n}") for n in range(60)]
    found = nearest(["please describe nothing"], many)
    assert found == [[]]


def test_other_scripts_have_words_too():
    found = nearest(["Опиши старый дуб"], [("ru", "Опиши дуб весной"), ("en", "Describe an oak")])
    assert [one.id for one in found[0]] == ["ru"]
