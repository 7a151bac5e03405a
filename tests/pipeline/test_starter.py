"""Recipes of one's own: copied whole, and held against the one they came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import RecipeError, RunFolderError
from distill.pipeline import recipe_keys
from distill.pipeline.parts import load_recipe
from distill.pipeline.starter import departures, init, shipped


def test_a_copy_is_the_recipe_with_its_comments_and_its_seeds(tmp_path: Path):
    said = init(tmp_path, like="alpaca-7b", name="mine")
    first, second, *_ = (tmp_path / "mine.yaml").read_text().splitlines()
    assert first == "# yaml-language-server: $schema=recipe.schema.json"
    assert (tmp_path / "recipe.schema.json").read_text() == recipe_keys.schema_text()
    assert second.startswith("# Alpaca-7B")
    assert load_recipe(tmp_path / "mine.yaml").name == "mine"
    assert (tmp_path / "seeds" / "general.jsonl").is_file()
    assert said[-1].strip() == f"distill run {tmp_path / 'mine.yaml'}"


def test_a_copy_uses_the_seeds_beside_it(tmp_path: Path):
    init(tmp_path, like="self-instruct")
    assert load_recipe(tmp_path / "self-instruct.yaml").expand.seeds == str(tmp_path / "seeds" / "general.jsonl")


def test_without_a_name_the_quickstart_is_copied(tmp_path: Path):
    init(tmp_path)
    assert load_recipe(tmp_path / "my-run.yaml").train is not None


def test_nothing_is_overwritten(tmp_path: Path):
    init(tmp_path, like="lima")
    with pytest.raises(RunFolderError, match=r"lima\.yaml is there already"):
        init(tmp_path, like="lima")


def test_an_unknown_recipe_is_suggested(tmp_path: Path):
    with pytest.raises(RecipeError, match='no shipped recipe "alpaca"; did you mean "alpaca-7b"'):
        init(tmp_path, like="alpaca")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", shipped())
def test_a_copy_departs_from_its_original_in_nothing_but_paths(tmp_path: Path, name: str):
    init(tmp_path, like=name)
    said = departures(tmp_path / f"{name}.yaml", name)
    assert [line for line in said[1:] if not line.strip().startswith("expand.seeds:")] == []


def test_each_key_that_departs_is_told_with_both_values(tmp_path: Path):
    init(tmp_path, like="alpaca-7b", name="mine")
    file = tmp_path / "mine.yaml"
    file.write_text(file.read_text().replace("epochs: 3 ", "epochs: 5 ").replace("  - {filter: exact_duplicate}\n", ""))
    said = departures(file, "alpaca-7b")
    assert "  train.epochs: 3 → 5" in said
    assert "  curate.exact_duplicate.on: prompt → unset" in said
