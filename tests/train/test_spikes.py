"""Which steps are not taken, and who is to blame."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from distill.core.jsonl import read_jsonl, whole_rows
from distill.errors import ModelError
from distill.train.options import GuardOptions
from distill.train.spikes import (
    Quarantine,
    QuarantineEntry,
    RowLoss,
    Spikes,
    Usual,
    mean_loss,
    most_quarantined,
    to_blame,
)

STEADY = [2.0, 2.1, 1.9, 2.0, 2.2, 1.8, 2.0, 2.1, 1.9, 2.0]


def usual(losses, **options):
    return Spikes(GuardOptions(**options), losses).usual()


def test_the_limit_is_so_many_deviations_above_the_median():
    found = usual(STEADY, spike=10, spike_nats=0)
    assert found.median == 2.0
    assert found.limit == pytest.approx(2.0 + 10 * 1.4826 * 0.2 / math.sqrt(2))


def test_a_falling_loss_hides_no_leap():
    falling = [10.0 - 0.3 * step for step in range(20)]
    assert usual(falling).limit < 10.0


def test_a_leap_is_at_least_so_many_nats():
    assert usual(STEADY, spike=1, spike_nats=1.5).limit == pytest.approx(3.5)
    assert usual([2.0] * 20).limit == pytest.approx(3.0)


def test_one_leap_among_the_steps_hardly_moves_the_limit():
    assert usual([*STEADY[:5], 50.0, *STEADY[5:]]).limit == pytest.approx(usual(STEADY).limit, abs=0.1)


@pytest.mark.parametrize("losses", [[], [2.0] * 7])
def test_nothing_is_a_leap_before_there_are_enough_steps(losses):
    assert usual(losses) == Usual(None, math.inf)


def test_only_the_last_steps_count_and_steps_of_nothing_do_not():
    assert usual([9.0] * 100 + [2.0] * 32 + [0.0] * 5).median == 2.0
    assert usual([9.0] * 100, spike=0) == Usual()


def rows(*losses):
    return [RowLoss(row, mean * tokens, tokens) for row, (mean, tokens) in enumerate(losses)]


def blamed(step, limit):
    return [one.row for one in to_blame(step, Usual(2.0, limit))]


def test_the_fewest_are_blamed_and_those_that_raise_the_loss_most():
    step = rows((2.0, 10), (9.0, 10), (2.0, 10), (30.0, 1))
    assert mean_loss(step) > 3
    assert blamed(step, 3.5) == [1]
    assert blamed(step, 2.1) == [1, 3]


def test_all_are_blamed_where_no_part_of_the_step_would_do():
    assert sorted(blamed(rows((9.0, 5), (8.0, 5)), 3.0)) == [0, 1]


@given(some.lists(some.tuples(some.floats(0, 50), some.integers(1, 40)), min_size=2, max_size=12))
def test_what_is_left_has_not_leapt_or_everybody_is_blamed(losses):
    step = rows(*losses)
    out = {one.row for one in to_blame(step, Usual(2.0, 3.0))}
    left = [one for one in step if one.row not in out]
    assert mean_loss(left) <= 3.0 if left else len(out) == len(step)


def entry(id_, step):
    return QuarantineEntry(id_, step, "loss spike", 9.0, 2.0, 3.0)


def test_a_session_is_left_out_from_its_step_on_also_when_the_list_is_read_again(tmp_path):
    path = tmp_path / "quarantined.jsonl"
    made = Quarantine(path, 8)
    made.add([entry("a", 5), entry("b", 9)])
    again = Quarantine(path, 8, list(whole_rows(path)))
    for one in made, again:
        assert [one.left_out(step) for step in (4, 5, 9)] == [set(), {"a"}, {"a", "b"}]
    assert [row["id"] for row in read_jsonl(path)] == ["a", "b"]
    Quarantine(path, 8)
    assert not path.exists()


def test_too_many_end_training_with_one_line(tmp_path):
    made = Quarantine(tmp_path / "quarantined.jsonl", 2)
    told = {"step": 7, "steps": 36, "why": "loss spike", "learning_rate": 0.01}
    made.require_room(2, **told)
    made.add([entry("a", 5)])
    with pytest.raises(ModelError) as caught:
        made.require_room(2, **told)
    assert str(caught.value).startswith("training stopped at step 7 of 36: loss spike, and 1 of 2 sessions that")
    assert "lower train.learning_rate (it is 0.01)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "sessions", "expected"), [(None, 50, 8), (None, 1000, 50), (0, 1000, 0), (3, 9, 3)])
def test_a_twentieth_of_the_sessions_may_be_set_aside_and_at_least_eight(given, sessions, expected):
    assert most_quarantined(GuardOptions(max_quarantined=given), sessions) == expected
