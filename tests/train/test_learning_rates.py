"""The learning rate that a recipe leaves out is the one usual for its method, and is told before training."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from distill.pipeline.parts import load_recipe
from distill.train.options import LEARNING_RATES, TrainOptions


@pytest.mark.parametrize(("method", "rate"), [("qlora", 5e-4), ("lora", 5e-4), ("full", 2e-5)])
def test_each_method_has_its_own(method, rate):
    assert TrainOptions.model_validate({"method": method}).learning_rate == LEARNING_RATES[method] == rate


def test_without_a_method_it_is_that_of_the_default_one():
    assert TrainOptions().learning_rate == LEARNING_RATES[TrainOptions().method]


@pytest.mark.parametrize("method", LEARNING_RATES)
def test_what_a_recipe_says_stands(method):
    given = TrainOptions.model_validate({"method": method, "learning_rate": 1e-3})
    assert given.learning_rate == 1e-3
    assert TrainOptions.model_validate(given.model_dump()) == given


@pytest.mark.parametrize("method", ["half", ["full"], None])
def test_a_wrong_method_is_the_only_fault_told(method):
    with pytest.raises(ValidationError) as caught:
        TrainOptions.model_validate({"method": method})
    assert [error["loc"] for error in caught.value.errors()] == [("method",)]


@pytest.fixture
def recipe(tmp_path):
    """One that trains all weights and leaves the rate out."""
    path = tmp_path / "whole.yaml"
    path.write_text(
        "name: whole\nsources: [{from: sharegpt, path: rows.json}]\nstudent: {model: smollm2}\ntrain: {method: full}\n"
    )
    (tmp_path / "rows.json").write_text("[]")
    return path


def test_a_recipe_is_resolved_to_it(recipe):
    assert load_recipe(recipe).document()["train"]["learning_rate"] == 2e-5


@pytest.mark.slow
def test_check_tells_it(recipe):
    command = [sys.executable, "-m", "distill", "check", str(recipe)]
    faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "train: full at a learning rate of 2e-05 takes about " in faults
