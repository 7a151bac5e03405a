"""A stage that writes something else for the same inputs and options has another `REVISION`."""

from __future__ import annotations

import copy
import json

import pytest

from tests.pipeline import golden


@pytest.mark.model
def test_what_a_stage_writes_changes_with_its_revision_alone(tmp_path):
    pytest.importorskip("torch")
    now = json.loads(json.dumps(golden.written(golden.figures(tmp_path))))
    was = json.loads(golden.GOLDEN.read_text(encoding="utf-8"))
    assert list(was) == list(golden.PIPELINE)
    assert (said := golden.verdict(was, now)) is None, said


@pytest.fixture
def was():
    return {
        "expand": {"revision": 1, "figures": {"tasks": "ab"}},
        "train": {"revision": 1, "figures": {"losses": [3.5, 2.25]}},
    }


def test_another_output_at_the_same_revision_says_what_to_do(was):
    now = copy.deepcopy(was)
    now["train"]["figures"]["losses"][1] = 2.26
    assert golden.verdict(was, now) == (
        "train writes something else than before (losses.1: 2.25 → 2.26): if that is meant, raise REVISION in"
        " distill/train/stage.py, and type: python -m tests.pipeline.golden"
    )


def test_the_first_stage_that_differs_is_named(was):
    now = copy.deepcopy(was)
    now["expand"] = {"revision": 2, "figures": {"tasks": "cd"}}
    now["train"]["figures"]["losses"] = []
    said = golden.verdict(was, now)
    assert said is not None
    assert said.startswith("expand writes something else than before (tasks: ab → cd)")
    assert "raise REVISION" not in said


def test_figures_that_differ_by_a_rounding_are_the_same(was):
    now = copy.deepcopy(was)
    now["train"]["figures"]["losses"][1] = 2.2505
    assert golden.verdict(was, now) is None
