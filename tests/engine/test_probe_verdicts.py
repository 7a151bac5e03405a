"""Verdicts of a probe on answers as endpoints give them."""

from __future__ import annotations

import pytest

from distill.engine.probe_verdicts import (
    ProbeReply,
    judge_logprobs,
    judge_response_format,
    judge_seed,
    judge_stop,
    judge_temperature,
)


def test_a_hosted_model_that_rounds_differently_at_0_is_not_accused():
    heard = [ProbeReply(text=f"a long common beginning, then {end}") for end in ("one", "two", "six")]
    assert judge_temperature(heard, heard).verdict == "unclear"


def test_answers_to_one_seed_that_part_late_are_unclear():
    first, again, other = (ProbeReply(text=text) for text in ("a long common one", "a long common two", "else"))
    assert judge_seed(first, again, other, None).verdict == "unclear"


def test_seeds_that_all_draw_the_same_are_ignored_where_none_draws_another():
    alike, bare = ProbeReply(text="the same"), ProbeReply(text="another")
    assert judge_seed(alike, alike, alike, bare).verdict == "ignored"


def test_a_stop_string_that_is_kept_at_the_end_is_honoured():
    plain, stopped = ProbeReply(text="1 2 3 4 5"), ProbeReply(text="1 2 3 4")
    assert judge_stop(plain, stopped).verdict == "honoured"


@pytest.mark.parametrize(
    ("text", "finish", "verdict"),
    [("Sur", "stop", "honoured"), ("Sure, 1", "stop", "ignored"), ("1 2 3, 1 2 3", "stop", "unclear")],
)
def test_stop_shows_in_another_answer_too_where_it_cuts_it_early(text, finish, verdict):
    assert judge_stop(ProbeReply(text="1 2 3 4 5 6 7"), ProbeReply(text=text, finish=finish)).verdict == verdict


def test_another_answer_shows_nothing_of_stop():
    assert judge_stop(ProbeReply(text="1 2 3 4 5"), ProbeReply(text="I, II, III")).verdict == "unclear"


def test_json_that_comes_without_the_parameter_shows_nothing():
    heard = ProbeReply(text='{"a": 1}')
    assert judge_response_format(heard, heard).verdict == "unclear"


def test_log_probabilities_that_are_all_0_are_not_believed():
    heard = ProbeReply(text="1", logprobs={"content": [{"logprob": 0.0, "top_logprobs": []}]})
    assert [found.verdict for found in judge_logprobs(heard)] == ["unclear", "unclear"]


def test_the_older_shape_of_logprobs_is_read():
    heard = ProbeReply(text="1", logprobs={"token_logprobs": [None, -0.5], "top_logprobs": [{"a": -1, "b": -2}]})
    assert [found.verdict for found in judge_logprobs(heard)] == ["honoured", "honoured"]
