"""Intervals over prompts: right, paired, and never a NaN."""

from __future__ import annotations

import math

import numpy
import pytest

from distill.stats import MIN_PROMPTS, Gap, Refused, gap_closed, mean_interval, paired_difference


def numbers(count: int, seed: int = 0) -> list[float]:
    return numpy.random.default_rng(seed).normal(1.0, 0.5, count).tolist()


def test_an_interval_equals_scipys_percentile_bootstrap():
    stats = pytest.importorskip("scipy.stats")
    values = numbers(40)
    ours = mean_interval(values)
    theirs = stats.bootstrap(
        (numpy.array(values),), numpy.mean, n_resamples=10_000, method="percentile", rng=numpy.random.default_rng(1)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_a_paired_difference_equals_scipys():
    stats = pytest.importorskip("scipy.stats")
    student, base = numbers(30, 1), numbers(30, 2)
    ours = paired_difference(student, base)
    theirs = stats.bootstrap(
        (numpy.array(student), numpy.array(base)),
        lambda a, b, axis: (a - b).mean(axis=axis),
        paired=True,
        method="percentile",
        rng=numpy.random.default_rng(1),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_nineteen_of_twenty_intervals_hold_the_true_mean():
    held = 0
    for trial in range(400):
        found = mean_interval(numbers(32, seed=trial), seed=trial, resamples=500)
        held += found.low <= 1.0 <= found.high
    assert 0.90 <= held / 400 <= 0.98  # the percentile method is known to be a little short at n = 32


def test_the_share_of_a_gap_is_held_by_its_interval_nineteen_times_of_twenty():
    held = 0
    for trial in range(300):
        noise = numpy.random.default_rng(trial)
        prompt = noise.normal(0, 0.3, 32)
        base, student, teacher = (mean + prompt + noise.normal(0, 0.2, 32) for mean in (3.0, 1.8, 1.0))
        found = gap_closed(base.tolist(), student.tolist(), teacher.tolist(), seed=trial, resamples=500)
        held += found.low <= 0.6 <= found.high
    assert 0.90 <= held / 300 <= 0.99


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    assert mean_interval(numbers(20)) == mean_interval(numbers(20))
    assert mean_interval(numbers(20), seed=1) != mean_interval(numbers(20), seed=2)


def test_pairing_sees_what_the_spread_between_prompts_hides():
    hard = [float(index) for index in range(20)]
    easier = [value - 0.1 for value in hard]
    assert paired_difference(easier, hard).excludes_zero
    assert mean_interval(easier).high > mean_interval(hard).mean


def test_one_prompt_has_a_mean_but_no_certainty():
    found = mean_interval([0.4])
    assert (found.mean, found.low, found.high, found.n) == (0.4, 0.4, 0.4, 1)
    assert not paired_difference([0.4], [0.1]).excludes_zero
    assert isinstance(gap_closed([3.0], [2.0], [1.0]), Refused)


def test_no_prompts_have_no_mean():
    assert mean_interval([]) is None
    assert paired_difference([], []) is None
    assert isinstance(gap_closed([], [], []), Refused)


def test_constant_values_give_an_interval_of_no_width():
    found = mean_interval([0.25] * 12)
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


def test_equal_models_differ_by_nothing():
    found = paired_difference(numbers(12), numbers(12))
    assert (found.mean, found.low, found.high, found.excludes_zero) == (0.0, 0.0, 0.0, False)


def test_fewer_than_six_agreeing_prompts_prove_nothing():
    few, enough = MIN_PROMPTS - 1, MIN_PROMPTS
    assert not paired_difference([1.0] * few, [0.0] * few).excludes_zero
    assert paired_difference([1.0] * enough, [0.0] * enough).excludes_zero


@pytest.mark.parametrize("sign", [1, -1])
def test_a_gap_is_the_same_whether_lower_or_higher_is_better(sign):
    base, teacher = numbers(16, 1), [value - 3 for value in numbers(16, 2)]
    student = [(a + b) / 2 for a, b in zip(base, teacher, strict=True)]
    found = gap_closed(*([sign * value for value in values] for values in (base, student, teacher)))
    assert found.share == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)


def test_a_student_that_moves_away_has_a_share_below_nothing():
    base = numbers(16)
    found = gap_closed(base, [value + 1 for value in base], [value - 2 for value in base])
    assert (found.share, found.high) == pytest.approx((-0.5, -0.5))


def test_there_is_no_share_of_a_gap_that_may_not_exist():
    refused = gap_closed(numbers(20, 1), numbers(20, 2), numbers(20, 3))
    assert isinstance(refused, Refused)
    assert "no gap" in refused.reason


def test_a_teacher_equal_to_the_base_is_refused_without_dividing_by_zero():
    same = [1.0] * 10
    assert isinstance(gap_closed(same, same, same), Refused)


def test_a_nearly_closed_denominator_gives_finite_ends():
    base = [0.0] * 9 + [10.0]
    found = gap_closed(base, [value + 0.5 for value in base], [value + 1.0 for value in base])
    assert isinstance(found, Gap)
    assert all(math.isfinite(value) for value in (found.share, found.low, found.high))


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, math.nan])


def test_many_prompts_are_resampled_in_pieces():
    found = mean_interval(numbers(3_000), resamples=1_000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(3_000), rel=0.15)
