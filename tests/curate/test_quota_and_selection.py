"""Filters that choose among rows: quotas per group, and the most different rows."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distill.core.hashing import hash64
from distill.curate.filters.quota import Quota
from distill.curate.filters.selection import Selection, farthest_first
from distill.text.tfidf import hashed_vectors
from tests.support.set_filters import SEEDS, WORDS, kept, session, sessions, text

# --- quota


def test_of_each_group_the_first_rows_stay():
    rows = [session(f"s{number}", "Hi", source="ab"[number % 2]) for number in range(7)]
    found = Quota(Quota.Options(most=2)).decide_all(rows)
    assert [(each.keep, each.value, each.threshold) for each in found[:5]] == [
        *((True, place, 2) for place in (1, 1, 2, 2)),
        (False, 3, 2),
    ]
    assert kept(Quota(Quota.Options(most=2)), rows) == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize(("missing", "count"), [("keep", 4), ("group", 1)])
def test_rows_without_the_key_are_free_or_a_group(missing, count):
    assert len(kept(Quota(Quota.Options(by="topic", most=1, missing=missing)), sessions(*"abcd"))) == count


def test_a_quota_without_a_bound_is_an_error():
    with pytest.raises(ValidationError, match="give `most`"):
        Quota.Options()


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 9), st.floats(0.01, 1))
def test_no_group_is_above_its_quota_and_none_is_emptied(groups, most, share):
    rows = [session(f"s{number}", "Hi", source=group) for number, group in enumerate(groups)]
    stay = [row.meta["source"] for row in rows if row.id in kept(Quota(Quota.Options(most=most, share=share)), rows)]
    bound = min(most, max(1, int(share * len(rows))))
    assert {group: stay.count(group) for group in stay} == {g: min(bound, groups.count(g)) for g in groups}


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 9), st.randoms())
def test_as_many_of_each_group_stay_in_any_order(groups, most, rng):
    rows = [session(f"s{number}", "Hi", source=group) for number, group in enumerate(groups)]
    counts = []
    for _ in range(2):
        stay = kept(Quota(Quota.Options(most=most)), rows)
        counts.append(Counter(row.meta["source"] for row in rows if row.id in stay))
        rng.shuffle(rows)
    assert counts[0] == counts[1]


# --- selection


def test_exactly_so_many_rows_are_chosen_and_each_other_names_one():
    rng = random.Random(1)
    rows = sessions(*(text(rng, 9) for _ in range(60)))
    found = Selection(Selection.Options(count=12)).decide_all(rows)
    stay = {row.id for row, each in zip(rows, found, strict=True) if each.keep}
    assert len(stay) == 12
    assert all(each.neighbour in stay for each in found if not each.keep)


def test_of_three_topics_one_row_each_is_chosen():
    topics = ("river boat water bridge", "violin concert music choir", "bread oven flour butter")
    rows = sessions(*(f"{topic} {number}" for topic, number in itertools.product(topics, ("one", "two", "six"))))
    assert {int(id[1:]) // 3 for id in kept(Selection(Selection.Options(count=3)), rows)} == {0, 1, 2}


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 30))
def test_the_same_rows_in_another_order_give_the_same_set(seed, count):
    rng = random.Random(seed)
    rows = [session(f"s{number}", f"{text(rng, 12)} n{number}") for number in range(30)]
    rule = Selection(Selection.Options(count=count))
    before = set(kept(rule, rows))
    rng.shuffle(rows)
    assert set(kept(rule, rows)) == before


def test_the_lazy_choice_is_the_plain_one():
    rng = random.Random(3)
    texts = [text(rng, 10) for _ in range(200)]
    rows = hashed_vectors([each.split() for each in texts], hash64)
    chosen, _, _ = farthest_first(rows, texts, 40)
    plain = chosen[:1]
    while len(plain) < 40:
        nearest = (rows @ rows[plain].T).max(axis=1)
        nearest[plain] = float("inf")
        plain.append(min(range(200), key=lambda place: (nearest[place], texts[place])))
    assert chosen == plain


def test_the_set_of_thousands_is_the_same_in_another_order():
    rng = random.Random(8)
    words = [f"{first}{second}" for first in WORDS for second in WORDS]
    texts = list(dict.fromkeys(" ".join(rng.choices(words[:120], k=rng.randint(1, 12))) for _ in range(4000)))
    found = []
    for _ in range(2):
        chosen, cosines, _ = farthest_first(hashed_vectors([each.split() for each in texts], hash64), texts, 300)
        found.append(([texts[place] for place in chosen], dict(zip(texts, cosines.tolist(), strict=True))))
        rng.shuffle(texts)
    assert found[0] == found[1]


def test_answers_outside_the_window_are_dropped_first():
    rows = [session(f"s{n}", f"prompt {n}", "x" * n) for n in range(1, 8)]
    found = Selection(Selection.Options(count=9, min_chars=3, max_chars=5)).decide_all(rows)
    assert [each.reason for each in found] == [*["too_few_chars"] * 2, *["ok"] * 3, *["too_many_chars"] * 2]


@pytest.mark.parametrize("prompts", [[], ["same"] * 9, [""] * 9])
def test_rows_that_cannot_be_told_apart_are_chosen_all_the_same(prompts):
    assert len(kept(Selection(Selection.Options(count=4)), sessions(*prompts))) == min(4, len(prompts))
