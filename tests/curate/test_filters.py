"""Filters: each verdict with its reason, its value and its neighbour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distill.core import assets
from distill.core.registry import part
from distill.curate.filters import FILTERS
from distill.curate.filters.empty import Empty
from distill.curate.filters.exact_duplicate import ExactDuplicate
from distill.curate.filters.length import Length
from distill.curate.filters.near_duplicate import NearDuplicate
from distill.curate.filters.refusal import Refusal
from distill.curate.filters.truncated import Truncated
from distill.text.refusals import refusing_phrase
from distill.types import Message, Session, Verdict


def session(answer: str = "The Danube.", prompt: str = "Name a river.", id: str = "s", **meta) -> Session:
    return Session(id, (Message("user", prompt), Message("assistant", answer)), meta)


def verdict(rule, of: Session) -> Verdict:
    return rule.decide(rule.measure(of))


def sessions(*prompts: str, answers: tuple[str, ...] = ()) -> list[Session]:
    answers = answers or tuple(f"answer {number}" for number in range(len(prompts)))
    return [session(answers[number], prompt, id=f"s{number}") for number, prompt in enumerate(prompts)]


NEEDED = {
    "contamination": {"files": [str(assets.find("prompts/seeds/general.jsonl"))]},
    "keyword": {"words": ["abracadabra"]},
    "quota": {"most": 9},
    "semantic_duplicate": {"model": "no-such-folder"},
}
"""Options without which a filter would do nothing."""


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_on_the_shelf_has_options_with_defaults_and_a_scope(name):
    filter = part(FILTERS, name, kind="filter")
    rule = filter(filter.Options(**NEEDED.get(name, {})))
    assert hasattr(rule, "decide_all" if rule.scope == "set" else "measure")


@pytest.mark.parametrize("name", sorted({*FILTERS} - {"semantic_duplicate", "pairs"}))
def test_every_filter_keeps_a_good_session_without_a_word(name):
    filter = part(FILTERS, name, kind="filter")
    if hasattr(filter, "role"):
        pytest.skip("asks a model")
    rule = filter(filter.Options(**NEEDED.get(name, {})))
    good = session(reference="the Danube")
    found = rule.decide_all([good])[0] if rule.scope == "set" else verdict(rule, good)
    assert (found.rule, found.keep, found.reason) == (name, True, "ok")


@pytest.mark.parametrize("name", NEEDED)
def test_a_filter_that_would_do_nothing_is_refused(name):
    with pytest.raises(ValidationError):
        part(FILTERS, name, kind="filter").Options()


# --- length


@pytest.mark.parametrize(
    ("answer", "reason", "value", "threshold"),
    [
        ("too few", "too_few_words", 2, 3),
        ("one two three four five six", "too_many_words", 6, 5),
        ("a b c", "too_few_chars", 5, 8),
        ("some rather longish words", "too_many_chars", 25, 20),
    ],
)
def test_a_length_outside_a_bound_is_dropped_with_both_numbers(answer, reason, value, threshold):
    found = verdict(Length(Length.Options(min_words=3, max_words=5, min_chars=8, max_chars=20)), session(answer))
    assert (found.keep, found.reason, found.value, found.threshold) == (False, reason, value, threshold)


def test_words_are_counted_in_scripts_without_spaces_too():
    rule = Length(Length.Options(min_words=3, max_words=8))
    assert [verdict(rule, session(text)).value for text in ("她周一去了学校", "one two", "河")] == [7, 2, 1]


def test_bounds_are_inclusive():
    rule = Length(Length.Options(min_words=3, max_words=3, min_chars=5, max_chars=5))
    assert verdict(rule, session("a b c")).keep


def test_bounds_in_the_wrong_order_are_an_error():
    with pytest.raises(ValidationError, match="min_words 5 is above max_words 3"):
        Length.Options(min_words=5, max_words=3)


# --- empty


@pytest.mark.parametrize("answer", ["", " \n", "...", "—!?"])
def test_an_answer_without_a_letter_or_digit_is_empty(answer):
    found = verdict(Empty(Empty.Options()), session(answer))
    assert (found.keep, found.reason) == (False, "empty")


@given(st.one_of(st.text(), st.text(st.characters(max_codepoint=127))))
def test_the_letters_and_digits_of_an_answer_are_counted(answer):
    assert Empty(Empty.Options()).measure(session(answer)) == sum(map(str.isalnum, answer))


@pytest.mark.parametrize("answer", ["4", "да", "河"])
def test_a_letter_or_digit_of_any_script_is_an_answer(answer):
    assert verdict(Empty(Empty.Options()), session(answer)).keep


def test_a_session_without_an_answer_is_empty():
    assert not verdict(Empty(Empty.Options()), Session("s", (Message("user", "Hello"),))).keep


# --- truncated


def test_a_cut_answer_is_labelled_by_default():
    found = verdict(Truncated(Truncated.Options()), session(truncated=True))
    assert (found.keep, found.reason) == (True, "truncated")


@pytest.mark.parametrize("end", ["of", "the", "and,", "such as:", "(", "because"])
def test_an_answer_that_ends_within_a_sentence_is_labelled(end):
    answer = f"The bird is gone, and its memory is a reminder of what we lose {end}"
    found = verdict(Truncated(Truncated.Options()), session(answer))
    assert (found.keep, found.reason, found.value) == (True, "unfinished", "true")


@pytest.mark.parametrize(
    "answer",
    [
        "The",
        "with, of, and",
        "1. Java\n2. Python\n3. C++",
        "We went over the bridge, through the wood and home to bed in",
        "A list of what I would take along to the sea: a towel",
        "There is more of the same, and all the rest, behind https://a.org/what-is-the-future-of-trends/",
    ],
)
def test_an_end_that_may_be_meant_says_nothing(answer):
    assert verdict(Truncated(Truncated.Options()), session(answer)).reason == "ok"


@pytest.mark.parametrize("given", [session(truncated=True), session("It was the best of all that there is in the")])
def test_a_cut_answer_is_dropped_when_told(given):
    assert not verdict(Truncated(Truncated.Options(drop=True)), given).keep


# --- refusal


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t assist with that request.",
        "Sorry, I cannot provide medical advice.",
        "I am unable to browse the internet.",
        "Unfortunately, I am not able to open links.",
        "As an AI language model, I have no favourite colour.",
        "Well, as an AI, I do not eat.",
        "I'm just an AI, so I was never a child.",
        "I don't have personal opinions, but many like tea.",
        "My training data ends in 2021.",
        "I apologize, but I cannot fulfil this request.",
        "I can't fulfill this request.",
        "I'm sorry, but I don't have access to news sources, so I'm unable to read it.",
        "I'm sorry, I cannot retrieve that information.",
        "Unfortunately, I am an AI language model, and I cannot edit images.",
        "Unfortunately, I cannot determine the angle given only two sides.",
        "Regrettably, I am not capable of creating images.",
        "I'm sorry, but you didn't provide the song lyrics.",
        "I'm sorry, but you need to specify the product.",
        "I'm sorry, but the data you've given isn't enough information to draw it.",
        "You ask for an address. Due to privacy concerns, I cannot answer this.",
        "I lack the ability to browse.",
        "No, I am a language model trained by researchers.",
        "My name is Vicuna, and I'm a language model developed by researchers.",
        "I am Vicuna, a language model trained by researchers.",
    ],
)
def test_a_refusal_is_found(answer):
    assert refusing_phrase(answer) is not None


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry that I was late yesterday; the bus broke down.",
        "Dear Anna, I am sorry to hear of your loss.",
        "She works as an AI researcher in Bonn.",
        "You can't divide by zero.",
        "Unfortunately, the shop is closed on Sundays.",
        "He said that he cannot help himself.",
        "I can't help but be drawn to her.",
        "I couldn't help laughing at the joke.",
        "I could not answer her letter for weeks.",
        "I couldn't open the door, and I can't see a thing.",
        "I will not give up, whatever happens.",
        "I'm sorry, but I'm unable to come into work today due to a migraine.",
        "Unfortunately, I am not available during that period.",
        "Unfortunately, there is not enough water for all of us.",
        '"I am an AI," said the robot.',
        "I am an airline pilot, and I don't have any brothers.",
    ],
)
def test_an_ordinary_answer_is_no_refusal(answer):
    assert refusing_phrase(answer) is None


def test_a_refusal_is_labelled_by_default_and_says_its_phrase():
    found = verdict(Refusal(Refusal.Options()), session("As an AI, I cannot eat."))
    assert (found.keep, found.reason, found.value) == (True, "refusal", "as an ai,")


def test_a_refusal_is_dropped_when_told():
    assert not verdict(Refusal(Refusal.Options(drop=True)), session("I cannot help with that.")).keep


# --- duplicates


def test_of_equal_prompts_the_first_stays_and_is_named():
    verdicts = ExactDuplicate(ExactDuplicate.Options()).decide_all(sessions("Name a river.", "Hi", "name  A river."))
    assert [(found.keep, found.neighbour) for found in verdicts] == [(True, None), (True, None), (False, "s0")]


@pytest.mark.parametrize(("on", "kept"), [("prompt", [1, 0]), ("answer", [1, 0]), ("both", [1, 0])])
def test_the_same_session_twice_is_a_duplicate_by_any_comparison(on, kept):
    rule = ExactDuplicate(ExactDuplicate.Options(on=on))
    verdicts = rule.decide_all(sessions("Name a river.", "Name a river.", answers=("Rhine", "rhine")))
    assert [int(found.keep) for found in verdicts] == kept


@pytest.mark.parametrize(("on", "kept"), [("prompt", 1), ("answer", 2), ("both", 2)])
def test_the_same_prompt_answered_differently_is_a_duplicate_by_its_prompt_only(on, kept):
    rule = ExactDuplicate(ExactDuplicate.Options(on=on))
    verdicts = rule.decide_all(sessions("Name a river.", "Name a river.", answers=("Rhine", "Danube")))
    assert sum(found.keep for found in verdicts) == kept


def test_of_similar_prompts_the_first_stays_and_the_nearest_is_named():
    rule = NearDuplicate(NearDuplicate.Options(rouge_l=0.7))
    verdicts = rule.decide_all(
        sessions("Name four kinds of clouds in the sky.", "Say hello.", "Name five kinds of clouds in the sky.")
    )
    assert [found.keep for found in verdicts] == [True, True, False]
    assert (verdicts[2].neighbour, verdicts[2].value, verdicts[2].threshold) == ("s0", 0.875, 0.7)


def test_a_dropped_row_drops_no_other():
    prompts = ("a b c d e f g h i j", "a b c d e f g h x y", "a b c d e f w v x y")
    verdicts = NearDuplicate(NearDuplicate.Options(rouge_l=0.7)).decide_all(sessions(*prompts))
    assert [found.keep for found in verdicts] == [True, False, True]


def test_near_duplicates_may_be_judged_by_their_answers():
    rule = NearDuplicate(NearDuplicate.Options(on="answer"))
    verdicts = rule.decide_all(sessions("Name a river.", "Say hello.", answers=("The Danube is long.",) * 2))
    assert [found.keep for found in verdicts] == [True, False]
