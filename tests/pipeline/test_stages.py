"""What makes a stage run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.pipeline import stages


@pytest.mark.parametrize(
    ("package", "listed"), [("comparing", stages.COMPARING_SOURCES), ("reporting", stages.REPORTING_SOURCES)]
)
def test_every_module_of_a_stage_counts_as_its_source(package, listed):
    folder = Path(stages.__file__).parent.parent / package
    modules = {f"distill.{package}.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__"}
    assert modules == set(listed)
