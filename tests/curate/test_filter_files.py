"""Files that a filter names: found beside the recipe, and part of what makes curate stale."""

from __future__ import annotations

import json

import pytest

from distill.errors import RecipeError
from distill.pipeline.parts import load_recipe


def recipe(folder, **rule):
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"name": "own", "curate": [rule]}))
    return path


def test_a_rule_finds_its_files_beside_the_recipe_and_notices_a_change(tmp_path):
    (tmp_path / "bench.jsonl").write_text("{}\n")
    loaded = load_recipe(recipe(tmp_path, filter="contamination", files=["bench.jsonl"]))
    assert loaded.curate[0].options.files == [str(tmp_path / "bench.jsonl")]
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(loaded.to_yaml())
    assert load_recipe(resolved).document() == loaded.document()
    (tmp_path / "bench.jsonl").write_text('{"text": "more"}\n')
    with pytest.raises(RecipeError, match="has changed since this recipe was resolved"):
        load_recipe(resolved)


def test_a_rule_may_name_a_folder_or_an_embedded_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    loaded = load_recipe(recipe(tmp_path, filter="semantic_duplicate", model="model"))
    assert loaded.curate[0].options.model == str(tmp_path / "model")
    assert [*loaded.files] == [str(tmp_path / "model")]
    loaded = load_recipe(recipe(tmp_path, filter="length", max_tokens=9, tokenizer="smollm2"))
    assert (loaded.curate[0].options.tokenizer, loaded.files) == ("smollm2", {})


def test_a_missing_file_of_a_rule_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match=r"curate\.contamination\.files: no file none\.jsonl"):
        load_recipe(recipe(tmp_path, filter="contamination", files=["none.jsonl"]))


def test_a_rule_s_path_that_is_set_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    (here / "own.txt").write_text("one\n")
    monkeypatch.chdir(here)
    path = recipe(tmp_path, filter="contamination", files=["missing"])
    loaded = load_recipe(path, overrides=["curate.contamination.files=[own.txt]"])
    assert loaded.curate[0].options.files == [str(here / "own.txt")]


def test_on_is_a_key_and_no_a_language(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: own\ncurate:\n- {filter: language, on: both, keep: [no, en]}\n- {filter: truncated, drop: yes}\n"
    )
    language, truncated = (rule.options for rule in load_recipe(path).curate)
    assert (language.on, language.keep, truncated.drop) == ("both", ("no", "en"), True)
