"""How many tokens a text shares with each of many."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from distill.text.rouge_index import FIRST_CAPACITY, Overlaps


def shared(one: str, other: str) -> int:
    return (Counter(one) & Counter(other)).total()


def of(texts: list[str]) -> Overlaps:
    overlaps = Overlaps()
    for text in texts:
        overlaps.add(text)
    return overlaps


@given(st.lists(st.text("abcd", max_size=9), max_size=9), st.text("abcde", max_size=9))
def test_repeated_tokens_are_shared_as_often_as_both_have_them(texts, query):
    assert of(texts).shared(query).tolist() == [shared(text, query) for text in texts]


def test_counts_stay_right_while_rare_tokens_become_common_and_common_ones_rare():
    rng = random.Random(1)
    early, late = (
        ["".join(rng.choices(letters, k=8)) for letters in ("ab", "cdefghij")],
        [f"{chr(500 + n)}a" for n in range(200)],
    )
    texts = early * 100 + late * (5 * FIRST_CAPACITY // 200) + ["zz", "yx"] * FIRST_CAPACITY
    overlaps = of(texts)
    for query in (*early, "abz", "zzz", late[0], "yxab"):
        assert overlaps.shared(query).tolist() == [shared(text, query) for text in texts]
    assert overlaps.lengths.tolist() == [len(text) for text in texts]


def test_texts_of_hundreds_of_tokens_are_counted_whole():
    long = "a" * 300 + "b" * 70_000
    assert of([long, "ab" * 200, "c"]).shared(long).tolist() == [70_300, 400, 0]
    assert of([long, "a" * 255, "a" * 256]).shared("a" * 256).tolist() == [256, 255, 256]
