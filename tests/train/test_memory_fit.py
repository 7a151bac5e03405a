"""A step fits into a GPU's memory by formula: fewer tokens a pass or more recomputation where there is less of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distill.train.memory import Fit, Pass, estimate, fit
from distill.train.options import TrainOptions
from tests.support.training import LLAMA_3_8B, LLAMA_3_8B_CONFIG

GB = 1e9


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder that says to be of Llama-3-8B's shape."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B_CONFIG))
    return folder


def fitted(base, room, *, kept=None, longest=512, **options):
    return fit(base, kept, TrainOptions.model_validate(options), longest=longest, width=2, room=room)


def held(found: Fit, *, longest=512) -> float:
    """Bytes that the layout takes by formula."""
    one = Pass(max(found.tokens, longest), recomputed=found.layers or 0, device="cuda", width=2)
    return estimate(LLAMA_3_8B, TrainOptions(), one).total


def test_on_a_cpu_nothing_is_computed_again(base):
    assert fitted(base, None) == Fit(512, "none")
    assert fitted(base, None, micro_batch_tokens=64) == Fit(64, "none")


def test_what_the_recipe_says_is_done(base):
    assert fitted(base, 24 * GB, checkpointing="full") == Fit(4096, "full")
    assert fitted(base, 24 * GB, checkpointing="none", micro_batch_tokens=99) == Fit(99, "none")


def test_with_less_room_passes_are_smaller_or_more_is_computed_again(base):
    rooms = (141 * GB, 80 * GB, 24 * GB, 12 * GB)
    found = [fitted(base, room) for room in rooms]
    assert all(held(one) <= 0.92 * room for one, room in zip(found, rooms, strict=True))
    assert found[0].layers == 0
    assert found[0].checkpointing == "none"
    assert [one.tokens for one in found] == sorted((one.tokens for one in found), reverse=True)
    assert found[-1] != found[0]


def test_with_the_tokens_given_as_few_layers_as_needed_are_computed_again(base):
    found = fitted(base, 24 * GB, micro_batch_tokens=8192)
    assert found.tokens == 8192
    assert found.checkpointing == "selective"
    assert found.layers is not None
    assert held(found) <= 0.92 * 24 * GB < held(replace(found, layers=found.layers - 1))


def test_a_pass_holds_the_longest_session(base):
    assert fitted(base, 24 * GB, longest=3000).tokens >= 3000


def test_a_pruned_base_needs_less(base):
    whole, pruned = (fitted(base, 24 * GB, kept=kept, micro_batch_tokens=8192) for kept in (None, range(16)))
    assert (pruned.layers or 0) < (whole.layers or 0)


def test_where_the_shape_is_unknown_all_layers_are_computed_again(tmp_path):
    assert fitted(tmp_path, 24 * GB) == Fit(4096, "selective")


def test_what_fits_nowhere_is_laid_out_as_small_as_can_be(base):
    assert fitted(base, 8 * GB, longest=700, method="lora") == Fit(700, "selective", 32)


@pytest.mark.parametrize(("room", "expected"), [(24, (4096, 3)), (40, (8192, 0)), (80, (16384, 0)), (141, (16384, 0))])
def test_a_card_is_given_large_passes_and_little_to_compute_again(base, room, expected):
    found = fitted(base, room * GB, lora={"r": 64})
    assert (found.tokens, found.layers) == expected
