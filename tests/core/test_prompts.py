"""Prompt files: every one can be loaded, and values are put in once."""

from __future__ import annotations

from string import Template

import pytest

from distill.core import assets
from distill.core.assets import fill, load
from distill.errors import DistillError

FOLDER = assets.find("prompts")
TEMPLATES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("strategies/*.txt"))


def test_there_are_prompts():
    assert "strategies/self_instruct.txt" in TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_prompt_has_valid_placeholders(name):
    assert Template(load(name)).is_valid()


def test_a_value_is_never_looked_into():
    assert fill("Say $this.", this="$that and $$") == "Say $that and $$."


@pytest.mark.parametrize("values", [{}, {"this": "a", "that": "b"}])
def test_values_and_placeholders_must_match(values):
    with pytest.raises(DistillError, match="do not match"):
        fill("Say $this.", **values)


def test_a_stray_dollar_sign_is_an_error():
    with pytest.raises(DistillError, match=r"stray \$"):
        fill("It costs $ 5.")


def test_an_unknown_prompt_is_an_error():
    with pytest.raises(DistillError, match="no shipped file"):
        load("strategies/none.txt")
