"""Repeated phrases and lines: loops are dropped, shares counted as defined."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.curate.filters.repetition import Repetition
from tests.support.row_filters import session, verdict

SOUND = (
    "A river begins at a spring high in the hills, where rain and melted snow gather. It runs down over stones, joins "
    "other streams, and slows when the land grows flat. Towns were built on its banks, since water carried goods and "
    "turned mills. Near the sea it spreads into a delta, dropping the sand it brought along, and birds come to feed."
)


def test_a_sound_answer_repeats_nothing():
    found = verdict(Repetition(Repetition.Options()), session(SOUND))
    assert (found.keep, found.reason) == (True, "ok")


@pytest.mark.parametrize(
    "text",
    [
        "the cat sat on the mat and then " * 20,
        "\n".join(["I like tea very much indeed."] * 30),
        "\n\n".join(["A whole paragraph that is said again, word for word, and again."] * 8),
        "yes " * 200,
        "我喜欢喝茶。" * 40,
    ],
)
def test_a_loop_is_dropped(text):
    found = verdict(Repetition(Repetition.Options()), session(text))
    assert (found.keep, found.reason, found.threshold) == (False, "loop", 5)
    assert not verdict(Repetition(Repetition.Options(loop=1000)), session(text)).keep


@pytest.mark.parametrize("loop", [" yes" * 30, " on and on it goes" * 6, f" {'word by word and so on ' * 6}"])
def test_a_loop_at_the_end_of_a_long_answer_is_dropped_however_small_its_share(loop):
    text = " ".join(random.Random(1).choices(SOUND.split(), k=300))
    rule = Repetition(Repetition.Options(drop_above=1))
    assert verdict(rule, session(text)).keep
    found = verdict(rule, session(text + loop))
    assert (found.keep, found.reason, found.threshold) == (False, "loop", 5)
    assert verdict(Repetition(Repetition.Options(drop_above=1, loop=40)), session(text + loop)).keep


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("a " * 20, 20),
        ("a " * 19, 1),
        ("a b c d e " * 4, 4),
        ("x a b c d e a b c d e y a b c d e a b c d e", 1),
        (f"{' '.join(map(str, range(40)))} " * 3, 3),
        (f"{' '.join(map(str, range(41)))} " * 3, 1),
    ],
)
def test_times_in_a_row_are_counted_as_defined(text, times):
    (found,) = Repetition(Repetition.Options()).measure(session(text))
    assert found["loop"] == times


def test_a_repeat_above_its_threshold_alone_is_labelled():
    sentences = SOUND.split(". ")
    text = ".\n".join([*sentences, sentences[1]])
    found = verdict(Repetition(Repetition.Options()), session(text))
    assert (found.keep, found.reason != "ok") == (True, True)
    assert not verdict(Repetition(Repetition.Options(drop_above=0)), session(text)).keep


def test_short_answers_are_not_judged():
    assert verdict(Repetition(Repetition.Options()), session("ha " * 49)).reason == "ok"


@pytest.mark.parametrize(
    ("text", "name", "share"),
    [
        ("a b a b c", "top_2_gram", 4 / 5),
        ("a a a", "top_2_gram", 0.0),  # the two overlap
        ("x x x y y y z z z and one two one two", "top_2_gram", 12 / 24),
        ("one two three four five one two three four five", "duplicate_5_grams", 0.5),
        ("x\ny\nx\nx", "duplicate_lines", 0.5),
        ("x\n\ny\n\nx\n\nzz", "duplicate_paragraph_chars", 1 / 5),
    ],
)
def test_shares_are_counted_as_defined(text, name, share):
    (found,) = Repetition(Repetition.Options()).measure(session(text))
    assert found[name] == pytest.approx(share, abs=1e-4)


@given(st.lists(st.sampled_from(["ab", "c", "d"]), max_size=80), st.integers(1, 6))
def test_shares_lie_between_0_and_1(tokens, width):
    text = "\n".join(" ".join(tokens[place : place + width]) for place in range(0, len(tokens), width))
    (found,) = Repetition(Repetition.Options()).measure(session(text))
    assert all(0 <= share <= 1 for name, share in found.items() if name not in ("words", "loop"))


@given(st.lists(st.sampled_from(["ab", "c", "d"]), min_size=50, max_size=90), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_bound_never_drops_more(tokens, one, other):
    measured = Repetition(Repetition.Options()).measure(session(" ".join(tokens)))
    strict, lax = sorted((one, other))
    if Repetition(Repetition.Options(drop_above=strict)).decide(measured).keep:
        assert Repetition(Repetition.Options(drop_above=lax)).decide(measured).keep
