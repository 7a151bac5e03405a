"""Recipes: what they accept, and the one line they say of each fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distill.core import assets
from distill.errors import RecipeError
from distill.pipeline.parts import load_recipe

QUICKSTART = assets.find("recipes/quickstart.yaml")


def write(folder: Path, **changes) -> Path:
    document = yaml.safe_load(QUICKSTART.read_text())
    for key, value in changes.items():
        if value is None:
            document.pop(key)
        else:
            document[key] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def fault(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).removeprefix(f"{path}: ")


def test_every_shipped_recipe_is_valid():
    recipes = sorted(path for path in assets.find("recipes").rglob("*.yaml") if path.parent.name != "accelerate")
    assert len(recipes) >= 1
    for path in recipes:
        assert load_recipe(path).name


def test_numbers_in_exponent_form_are_numbers():
    assert load_recipe(QUICKSTART, overrides=["train.learning_rate=5e-4"]).train.options.learning_rate == 5e-4


def test_a_resolved_recipe_loads_as_the_same(tmp_path):
    recipe = load_recipe(QUICKSTART)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path).document() == recipe.document()


def test_a_resolved_recipe_notices_that_its_seeds_have_changed(tmp_path):
    seeds = tmp_path / "mine.jsonl"
    seeds.write_bytes(assets.find("prompts/seeds/general.jsonl").read_bytes())
    path = tmp_path / "recipe.yaml"
    path.write_text(load_recipe(QUICKSTART, overrides=[f"expand.seeds={seeds}"]).to_yaml())
    seeds.write_text(seeds.read_text() + "\n")
    assert "has changed since this recipe was resolved" in fault(path)


def test_an_unknown_key_is_suggested_at_the_top(tmp_path):
    path = write(tmp_path, colect={"test": 1})
    assert fault(path) == 'unknown key "colect"; did you mean "collect"?'


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("teacher.modle=x", 'unknown key "teacher.modle"; did you mean "model"?'),
        ("train.epoch=2", 'unknown key "train.epoch"; did you mean "epochs"?'),
        ("train.lora.alfa=2", 'unknown key "train.lora.alfa"; did you mean "alpha"?'),
        (
            "train.compiled=true",
            'unknown key "train.compiled": it has gone, as its gain was never measured; leave it out',
        ),
        ("collect.sistem=x", 'unknown key "collect.sistem"; did you mean "system"?'),
        ("curate.near_duplicate.rouge=0.5", 'unknown key "curate.near_duplicate.rouge"; did you mean "rouge_l"?'),
        (
            "collect.hedge=2",
            'unknown key "collect.hedge": it has gone: no request is sent a second time while the first is under way;'
            " leave it out",
        ),
        ("expand.strategy=self_instrukt", 'expand: unknown strategy "self_instrukt"; did you mean "self_instruct"?'),
        ("compare.metrics=[overlp]", 'compare.metrics.overlp: unknown metric "overlp"; did you mean "overlap"?'),
    ],
)
def test_an_unknown_key_or_part_is_suggested(override, line):
    assert fault(QUICKSTART, override) == line


@pytest.mark.parametrize(
    ("override", "piece"),
    [
        ("seed=many", "seed: input should be a valid integer"),
        ("train.epochs=often", "train.epochs: input should be a valid"),
        ("collect.concurrency=0", "collect.concurrency: input should be greater than or equal to 1"),
        ("expand.seeds=nowhere.jsonl", "expand.seeds: no file nowhere.jsonl"),
        ("teacher.base_url=http://127.0.0.1:1/v1", "give either `serve: transformers` (or vllm), or `base_url`"),
        ("teacher.model=../weights.gguf", "teacher.model: no such file or folder"),
        ("teacher.model=smollm3", 'teacher.model: unknown model "smollm3"; did you mean "smollm2"?'),
        ("name=a/b", "name: string should match pattern"),
        ("train.report_to=tensorboard", "train.report_to: expected a list, such as [a, b], found 'tensorboard'"),
        ("student=smollm2", "student: expected keys with values, such as {key: value}, found 'smollm2'"),
        ("train.learning_rate=1,5e-3", "train.learning_rate: write numbers with a point and without other marks"),
        ("train={learning_rate: 1,5e-3}", 'train: found "5e-3" behind a comma, which ends a value; write numbers'),
        ("train={epochs: 1,5}", 'train: found "5" behind a comma, which ends a value; write numbers with a point'),
        ("student.template=chatlm", "student.template: input should be 'chatml', 'alpaca', 'vicuna' or 'own'"),
    ],
)
def test_a_wrong_value_says_what_was_expected(override, piece):
    line = fault(QUICKSTART, override)
    assert piece in line
    assert "\n" not in line


def test_all_faults_are_said_at_once(tmp_path):
    line = fault(QUICKSTART, "seed=many", "teacher.modle=x", "collect.concurrency=0")
    assert len(line.splitlines()) == 3


def test_a_missing_section_names_who_needs_it(tmp_path):
    assert fault(write(tmp_path, teacher=None)).endswith("`expand` needs a `teacher` section")


def test_terms_are_required(tmp_path):
    teacher = yaml.safe_load(QUICKSTART.read_text())["teacher"]
    del teacher["terms"]
    assert fault(write(tmp_path, teacher=teacher)) == "`teacher.terms` is missing"


def test_a_file_that_is_no_yaml_is_one_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: [unclosed")
    assert fault(path).startswith("no usable YAML")
    assert "\n" not in fault(path)


def test_a_missing_recipe_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_set_finds_a_rule_by_its_filter():
    recipe = load_recipe(QUICKSTART, overrides=["curate.near_duplicate.rouge_l=0.8"])
    assert [rule.options.rouge_l for rule in recipe.curate if rule.filter == "near_duplicate"] == [0.8]


def test_set_paths_are_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jsonl").write_bytes(assets.find("prompts/seeds/general.jsonl").read_bytes())
    assert load_recipe(QUICKSTART, overrides=["expand.seeds=own.jsonl"]).expand.seeds == str(tmp_path / "own.jsonl")


def test_a_dotted_path_is_not_imported_unasked(tmp_path):
    line = fault(QUICKSTART, "collect.strategy=os.path:join")
    assert "--allow-parts os" in line


@pytest.mark.parametrize(
    ("test", "overrides", "expected"),
    [
        (32, [], (32, 0.7)),
        ({"near": 0.8}, [], (32, 0.8)),
        ({"count": 8, "near": 1}, [], (8, 1.0)),
        (8, ["collect.test.near=0.8"], (8, 0.8)),
        ({"count": 8, "near": 0.9}, ["collect.test.count=9"], (9, 0.9)),
        ({"count": 8, "near": 0.9}, ["collect.test=4"], (4, 0.7)),
    ],
)
def test_held_out_prompts_are_a_count_or_a_section(tmp_path, test, overrides, expected):
    document = yaml.safe_load(QUICKSTART.read_text())
    recipe = load_recipe(write(tmp_path, collect={**document["collect"], "test": test}), overrides=overrides)
    assert (recipe.held_out.count, recipe.held_out.near) == expected
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "resolved.yaml").held_out == recipe.held_out
    as_before = recipe.held_out.near == 0.7
    assert isinstance(recipe.document()["collect"]["test"], int) == as_before


def test_the_threshold_has_its_key_where_sources_stand_alone(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Why?", "output": "So."}\n')
    sources = {"name": "x", "sources": [{"from": "alpaca", "path": "rows.jsonl"}], "curate": [{"filter": "empty"}]}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**sources, "test": 8}))
    held_out = load_recipe(path, overrides=["test.near=0.8"]).held_out
    assert (held_out.count, held_out.near) == (8, 0.8)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (-1, "collect.test.count: input should be greater than or equal to 0, found -1"),
        (
            "many",
            "collect.test.count: input should be a valid integer, unable to parse string as an integer, found 'many'",
        ),
        ({"near": 7}, "collect.test.near: input should be less than or equal to 1, found 7"),
        ({"nearr": 0.7}, 'unknown key "collect.test.nearr"; did you mean "near"?'),
    ],
)
def test_a_fault_of_the_held_out_prompts_names_its_key(tmp_path, test, message):
    document = yaml.safe_load(QUICKSTART.read_text())
    assert message in fault(write(tmp_path, collect={**document["collect"], "test": test}))
