"""Intervals over prompts: right, paired, and never a NaN."""

from __future__ import annotations

import math

import numpy
import pytest
import scipy.stats

from distill.compare.stats import (
    MIN_PROMPTS,
    Gap,
    Misleading,
    clustered_interval,
    gap_closed,
    holm,
    mean_interval,
    paired_difference,
    prompts_needed,
    sign_flip_p,
    student_t,
)


def numbers(count: int, seed: int = 0) -> list[float]:
    return numpy.random.default_rng(seed).normal(1.0, 0.5, count).tolist()


def expanded(prompts: int) -> float:
    """The level whose percentile interval is the expanded one of 95%."""
    return 1 - 2 * scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, prompts - 1) * math.sqrt(prompts / (prompts - 1)))


def test_an_interval_equals_scipys_percentile_bootstrap():
    values = numbers(40)
    ours = mean_interval(values)
    theirs = scipy.stats.bootstrap(
        (numpy.array(values),), numpy.mean, n_resamples=20_000, method="percentile",
        confidence_level=expanded(40), rng=numpy.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_a_paired_difference_equals_scipys():
    student, base = numbers(30, 1), numbers(30, 2)
    ours = paired_difference(student, base)
    theirs = scipy.stats.bootstrap(
        (numpy.array(student), numpy.array(base)),
        lambda a, b, axis: (a - b).mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        confidence_level=expanded(30),
        rng=numpy.random.default_rng(1),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [30, 80, 500])
@pytest.mark.parametrize("kind", ["normal", "share"])
def test_nineteen_of_twenty_intervals_hold_the_true_mean(kind, prompts):
    held = 0
    for trial in range(1_000):
        noise = numpy.random.default_rng(trial)
        drawn = noise.normal(0.4, 1.0, prompts) if kind == "normal" else (noise.random(prompts) < 0.4) * 1.0
        found = mean_interval(drawn.tolist(), seed=7, resamples=1_000)
        held += found.low <= 0.4 <= found.high
    assert 0.93 <= held / 1_000 <= 0.97


def test_two_orders_of_a_prompt_that_agree_widen_the_interval():
    noise = numpy.random.default_rng(1)
    prompt = noise.normal(0, 1, 100)
    games = [float(value + noise.normal(0, 0.3)) for value in prompt for _ in range(2)]
    clusters = [index // 2 for index in range(200)]
    clustered, naive = clustered_interval(games, clusters), mean_interval(games)
    assert clustered.n == 100
    assert clustered.mean == pytest.approx(naive.mean)
    assert (clustered.high - clustered.low) > 1.25 * (naive.high - naive.low)  # √2 where the orders agree wholly


def test_a_clustered_interval_equals_resampling_whole_prompts_by_hand():
    values, clusters = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.5], ["a", "a", "b", "c", "c", "c", "d", "d"]
    groups = [[1.0, 0.0], [1.0], [1.0, 0.0, 0.0], [1.0, 0.5]]
    noise = numpy.random.default_rng(5)
    means = []
    for _ in range(20_000):
        drawn = [value for index in noise.integers(4, size=4) for value in groups[index]]
        means.append(sum(drawn) / len(drawn))
    found = clustered_interval(values, clusters)
    tail = 100 * scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, 3) * math.sqrt(4 / 3))
    assert (found.low, found.high) == pytest.approx(tuple(numpy.percentile(means, [tail, 100 - tail])), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 13, 40, 300])
def test_the_p_of_a_difference_equals_scipys_permutation_test(count):
    student, base = numpy.array(numbers(count, 1)), numpy.array(numbers(count, 2)) - 0.1
    theirs = scipy.stats.permutation_test(
        (student - base,),
        lambda each, axis: each.mean(axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=numpy.random.default_rng(3),
    ).pvalue
    assert sign_flip_p(student.tolist(), base.tolist()) == pytest.approx(theirs, abs=1e-9 if count <= 13 else 0.015)


@pytest.mark.slow
def test_p_is_uniform_where_there_is_no_difference():
    noise = numpy.random.default_rng(11)
    ps = [sign_flip_p(noise.normal(0, 1, 24).tolist(), [0.0] * 24, seed=trial) for trial in range(400)]
    assert scipy.stats.kstest(ps, "uniform").pvalue > 0.01


def test_equal_answers_give_no_evidence_and_few_prompts_no_p():
    assert sign_flip_p([0.5] * 10, [0.5] * 10) == 1.0
    assert sign_flip_p([1.0] * (MIN_PROMPTS - 1), [0.0] * (MIN_PROMPTS - 1)) is None


def test_holm_adjusts_a_worked_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_as_many_prompts_as_asked_find_the_difference_four_times_of_five():
    noise = numpy.random.default_rng(2)
    needed = prompts_needed(noise.normal(0, 0.4, 400).tolist(), 0.1)
    found = sum(
        paired_difference(noise.normal(0.1, 0.4, needed).tolist(), [0.0] * needed, seed=3, resamples=500).excludes_zero
        for _ in range(400)
    )
    assert 0.73 <= found / 400 <= 0.87


def test_differences_that_are_all_equal_say_nothing_of_how_many_prompts_are_needed():
    assert prompts_needed([0.0] * 50, 0.05) is None
    assert prompts_needed([0.0] * 49 + [0.1], 0.05) is not None


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 7, 29, 79, 499])
def test_students_quantile_equals_scipys(freedom):
    assert student_t(0.975, freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), abs=0.005)


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
    assert isinstance(gap_closed([3.0], [2.0], [1.0]), Misleading)


def test_no_prompts_have_no_mean():
    assert mean_interval([]) is None
    assert paired_difference([], []) is None
    assert isinstance(gap_closed([], [], []), Misleading)


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
    assert isinstance(refused, Misleading)
    assert "no gap" in refused.reason


def test_a_teacher_equal_to_the_base_is_refused_without_dividing_by_zero():
    same = [1.0] * 10
    assert isinstance(gap_closed(same, same, same), Misleading)


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
