"""Steps and forward passes: every example once an epoch, the same steps in every layout, passes within their limit."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from distill.train.packing import passes, plan

LENGTHS = some.lists(some.integers(1, 300), min_size=1, max_size=60)


@given(LENGTHS, some.sampled_from([0.5, 1, 2, 2.5]), some.integers(50, 2000), some.booleans())
def test_a_run_sees_every_example_once_an_epoch(lengths, epochs, batch_tokens, grouped):
    made = plan(lengths, epochs=epochs, batch_tokens=batch_tokens, seed=3, grouped=grouped)
    seen = Counter(row for step in made.steps for row in step)
    assert all(step for step in made.steps)
    assert set(seen.values()) <= {int(epochs), int(epochs) + (epochs % 1 > 0)} | {0}
    if epochs >= 1:
        assert len(seen) == len(lengths)


@pytest.mark.parametrize(
    ("lengths", "settings", "steps", "mean_tokens"),
    [
        ([80] * 80, {"epochs": 2}, 36, 356),
        ([10], {"epochs": 1}, 1, 10),
        ([100] * 10_000, {"epochs": 3}, 183, 16_393),
        ([400, 900], {"epochs": 1, "batch_tokens": 1000}, 1, 1300),
        ([100] * 64, {"epochs": 1, "batch_rows": 16}, 4, 1600),
        ([100] * 64, {"epochs": 0.5, "batch_rows": 16}, 2, 1600),
    ],
)
def test_small_sets_are_divided_into_small_steps(lengths, settings, steps, mean_tokens):
    made = plan(lengths, seed=1, **settings)
    assert len(made.steps) == steps
    assert sum(lengths[row] for step in made.steps for row in step) / steps == pytest.approx(mean_tokens, abs=1)


def test_epochs_are_shuffled_anew_and_repeatably():
    first, again = (plan([7] * 40, epochs=2, batch_rows=40, seed=5) for _ in range(2))
    assert first == again
    assert first.steps[0] != first.steps[1]
    assert plan([7] * 40, epochs=2, batch_rows=40, seed=6) != first


def test_grouped_steps_hold_examples_of_like_length():
    lengths = [1 + 37 * i % 200 for i in range(200)]

    def spread(made):
        return sum(max(lengths[r] for r in step) - min(lengths[r] for r in step) for step in made.steps)

    mixed, grouped = (plan(lengths, epochs=1, batch_rows=4, seed=1, grouped=one) for one in (False, True))
    assert spread(grouped) < spread(mixed) / 10
    assert [lengths[step[0]] for step in grouped.steps] != sorted(lengths[step[0]] for step in grouped.steps)


@given(LENGTHS, some.integers(1, 600), some.booleans(), some.integers(1, 4))
def test_passes_hold_every_example_once_within_the_limit_and_evenly_over_processes(lengths, tokens, packed, processes):
    rows = list(range(len(lengths)))
    made = passes(rows, lengths, tokens=tokens, packed=packed, processes=processes)
    assert sorted(row for group in made for row in group) == rows
    assert len(made) % processes == 0
    for group in made:
        size = sum(lengths[r] for r in group) if packed else len(group) * max([lengths[r] for r in group], default=0)
        assert size <= tokens or len(group) == 1


def test_packed_passes_are_few_and_evenly_filled():
    lengths = [60, 50, 40, 30, 20]
    made = passes(range(5), lengths, tokens=100, packed=True)
    assert sorted(sum(lengths[row] for row in group) for group in made) == [100, 100]
