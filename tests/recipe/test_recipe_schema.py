"""recipe.schema.json and KEYS.md are current and whole, and accept what `load` accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match
from pydantic import BaseModel, ValidationError

from distill.core import registry
from distill.errors import RecipeError
from distill.pipeline import recipe_keys, recipe_page
from distill.pipeline.parts import load_recipe
from distill.pipeline.recipe_schema import SHELVES
from distill.recipe import Collect, Expand, Metric, Recipe, Rule, Source, Train
from distill.recipe.validation import _models
from distill.recipe.yaml_reader import _Loader
from distill.train.options import TrainOptions

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SCHEMA = json.loads((RECIPES / "recipe.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft7Validator(SCHEMA)


class Loader(_Loader):
    """Ours, with the numbers of YAML 1.2 (`5e-4`), which editors read."""


Loader.yaml_implicit_resolvers = {key: [*pairs] for key, pairs in _Loader.yaml_implicit_resolvers.items()}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"), Loader=Loader)
    return document


def fault(document: Any) -> str | None:
    """Where an independent validator finds the fault, and what it is."""
    error = best_match(VALIDATOR.iter_errors(document))
    return None if error is None else f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


DEFS = SCHEMA["$defs"]


def branches() -> Iterator[tuple[type[BaseModel], dict[str, Any]]]:
    """The options of every part, with their branch in the schema."""
    for section, (key, kind, shelf) in SHELVES.items():
        for branch in DEFS[section]["oneOf"]:
            if name := branch.get("properties", {}).get(key, {}).get("const"):
                yield registry.part(shelf, name, kind=kind).Options, branch


def sections() -> Iterator[tuple[type[BaseModel], dict[str, Any]]]:
    """Every model of a recipe, with its node in the schema."""
    waiting, seen = [(Recipe, SCHEMA), (TrainOptions, DEFS["Train"]), *branches()], {*LATER}
    while waiting:
        model, node = waiting.pop()
        yield model, node
        for nested in {one for field in model.model_fields.values() for one in _models(field.annotation)} - seen:
            seen.add(nested)
            found = DEFS[nested.__name__]
            waiting.append((nested, found if "properties" in found else found["anyOf"][0]))


LATER = {Expand, Collect, Rule, Metric, Train, Source}
"""Sections that take their part's options, so that their own model refuses less than `load`."""
VALUES = (None, True, -1, 0, 1, 7, 0.5, 2.5, 10**9, "text", "", ["text"], [1], {}, {"a": 1}, {"a": "text"})


def accepts(model: type[BaseModel], key: str, value: Any) -> bool | None:
    """Whether the type and range of a field hold for a value; `None` where only a validator of ours refuses it.

    So too where the names in a mapping are refused: they have no type in JSON.
    """
    try:
        model.model_validate_json(json.dumps({key: value}), strict=True)
    except ValidationError as error:
        faults = [one for one in error.errors() if one["loc"][:1] == (key,)]
        hard = [one for one in faults if one["type"] != "value_error" and "[key]" not in one["loc"]]
        return False if hard else None if faults else True
    return True


def test_the_schema_accepts_the_values_that_the_models_accept():
    differences, compared = [], 0
    for model, node in sections():
        for name, field in model.model_fields.items():
            key = field.alias or name
            if LATER.isdisjoint(_models(field.annotation)):
                allows = Draft7Validator({**node["properties"][key], "$defs": DEFS}).is_valid
                verdicts = [(value, accepts(model, key, value), allows(value)) for value in VALUES]
                differences += [(model, key, each) for each in verdicts if each[1] not in (None, each[2])]
                compared += len(verdicts)
    assert differences == []
    assert compared > 4_000


@pytest.mark.parametrize("name", [file.stem for file in sorted(RECIPES.glob("*.yaml"))])
def test_a_shipped_recipe_passes_before_and_after_its_defaults_are_filled_in(name: str):
    assert fault(read(name)) is None
    assert fault(json.loads(json.dumps(load_recipe(name).document()))) is None


MISTAKES = {
    "an unknown key": ("seeed: 8", "seeed", "seed"),
    "an unknown key of a section": ("student: {model: smollm2, prun: {layers: 24}}", "prun:", "prune:"),
    "a wrong type": ("seed: seven", "seven", "7"),
    "a wrong type of an option": ("train: {epochs: two}", "two", "2"),
    "a text for a section": ("student: smollm2", "smollm2", "{model: smollm2}"),
    "a value out of range": ("train: {learning_rate: 3}", "3", "3e-4"),
    "a value out of a filter's range": ("curate: [{filter: near_duplicate, rouge_l: 7}]", "7", "0.7"),
    "a value that is none of the choices": ("train: {method: qlor}", "qlor", "qlora"),
    "an unknown strategy": ("expand: {strategy: self_instruc, tasks: 9}", "self_instruc", "self_instruct"),
    "an unknown filter": ("curate: [{filter: lenght}]", "lenght", "length"),
    "an unknown metric": ("compare: {metrics: [overlp]}", "overlp", "overlap"),
    "an unknown format": ("sources: [{from: sharegp, path: x.json}]", "sharegp", "sharegpt"),
    "an unknown template": ("student: {model: smollm2, template: chatlm}", "chatlm", "chatml"),
    "a filter's unknown option": ("curate: [{filter: length, min_word: 3}]", "min_word", "min_words"),
    "a strategy's option under another": ("collect: {strategy: answer, samples: 4}", "answer", "best_of"),
    "an option that a format lacks": ("sources: [{from: alpaca, path: x, split: a}]", "alpaca", "datasets"),
    "a metric's unknown option": ("compare: {metrics: [{metric: instructions, prompt: x}]}", "prompt:", "prompts:"),
    "an unknown option of training": ("train: {lora: {rank: 8}}", "rank", "r"),
    "a missing key": ("teacher: {model: smollm2, serve: vllm}", "vllm", "vllm, terms: MIT"),
    "a missing key of a strategy": ("expand: {seeds: x.jsonl}", "x.jsonl", "x.jsonl, tasks: 9"),
    "a missing option of a filter": ("curate: [{filter: contamination}]", "contamination", "contamination, files: [x]"),
    "a missing option of a metric": (
        "compare: {metrics: [{metric: similarity}]}",
        "similarity",
        "similarity, model: x",
    ),
}
"""By kind: a part of a recipe, the mistake in it, and what was meant."""


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_refused_where_it_is_and_its_correction_is_not(kind: str):
    text, mistake, meant = MISTAKES[kind]
    wrong, right = (yaml.load(one, Loader=Loader) for one in (text, text.replace(mistake, meant)))
    [error] = VALIDATOR.iter_errors({**read("quickstart"), **wrong})
    assert next(iter(error.absolute_path), "") in wrong or error.validator == "additionalProperties"
    assert fault({**read("quickstart"), **right}) is None


def test_what_the_schema_refuses_load_refuses_too():
    for text, _, _ in MISTAKES.values():
        with pytest.raises(RecipeError):
            load_recipe({**read("quickstart"), **yaml.load(text, Loader=Loader)})


def test_a_part_of_ones_own_may_have_any_options():
    own = {
        "expand": {"strategy": "mine.parts:Grow", "tasks": 9, "depth": 3},
        "curate": [{"filter": "mine.parts:Rule", "limit": [1, 2]}],
        "compare": {"metrics": ["mine.parts:Metric", {"metric": "mine.parts:Metric", "n": 4}]},
        "sources": [{"from": "mine.parts:read", "path": "x.bin"}],
    }
    assert fault({**read("quickstart"), **own}) is None


@pytest.mark.parametrize(
    "text",
    ["collect: {test: {count: 9}}", "compare: {lm_eval: [arc_easy]}", "curate: null", "teacher: [*t]", "test: 9"],
)
def test_a_short_form_passes(text: str):
    teacher = "one: &t {model: m, base_url: http://127.0.0.1:8000/v1, terms: MIT}"
    changed = yaml.load(f"{teacher}\n{text}", Loader=Loader)
    assert fault({**read("quickstart"), **{key: value for key, value in changed.items() if key != "one"}}) is None


def test_the_files_are_those_that_make_keys_writes():
    assert (RECIPES / recipe_keys.SCHEMA).read_text(encoding="utf-8") == recipe_page.schema_json()
    assert (RECIPES / recipe_page.PAGE).read_text(encoding="utf-8") == recipe_page.page()


def test_every_key_is_described_by_a_sentence():
    keys = list(recipe_keys.every_key())
    assert [key.path for key in keys if not re.fullmatch(r".+[.…]\)?", key.description)] == []
    assert len(keys) > 500


def test_the_page_has_every_key_of_the_schema():
    page = recipe_page.page()
    texts = [one["description"] for _, node in sections() for one in node["properties"].values() if "const" not in one]
    assert [text for text in texts if text.replace("|", "&#124;") not in page] == []
