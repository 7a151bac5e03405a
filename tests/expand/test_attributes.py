"""Attributes: one value of each is drawn, slots are filled once, and the recipe's mistakes are told."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from distill.core import assets
from distill.errors import RecipeError, SeedsError
from distill.expand.strategies.attributes import Attributes
from distill.pipeline.parts import load_recipe
from distill.types import Completion, Task

PERSONAS, LEVELS = ("a nurse", "a baker", "a pupil"), ("easy", "hard")


def growth(**options) -> Attributes:
    given = {"attributes": {"persona": PERSONAS, "level": LEVELS}} | options
    return Attributes(Attributes.Options(**given), seed=7, target=64)


def asked(part: Attributes, k: int = 0) -> str:
    return next(part.propose(k)).messages[0].content


def answered(part: Attributes, text: str, k: int = 0) -> list[Task]:
    flow = part.propose(k)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(Completion(key="key", text=text, finish="stop"))
    return part.admit(k, end.value.value)


def test_each_request_draws_one_value_of_every_attribute():
    part = growth()
    found = [(k, [each for each in (*PERSONAS, *LEVELS) if f": {each}\n" in asked(part, k)]) for k in range(40)]
    assert all(len(drawn) == 2 for _, drawn in found)
    assert len({tuple(drawn) for _, drawn in found}) == 6


def test_what_was_drawn_stands_in_the_tasks_meta():
    part = growth()
    (task,) = answered(part, "TASK 1: Name four kinds of clouds.")
    drawn = task.meta["attributes"]
    assert set(drawn) == {"persona", "level"}
    assert f"- persona: {drawn['persona']}\n- level: {drawn['level']}" in asked(part)
    assert task.meta["lineage"] == [f"persona: {drawn['persona']}", f"level: {drawn['level']}"]
    assert "kind" not in task.meta


@pytest.mark.parametrize("name", ["kind", "reference"])
def test_an_attribute_called_kind_or_reference_is_the_tasks_own(name):
    (task,) = answered(growth(attributes={name: ["code"]}), "TASK 1: Sort a list in Python.")
    assert task.meta[name] == "code"


def test_text_of_ones_own_has_its_slots_filled_once():
    part = growth(
        attributes={"who": ["{level} $level"], "level": ["easy"]}, template="Ask {count} like {who}: {level} {x y}."
    )
    assert asked(part).startswith("Ask 3 like {level} $level: easy {x y}.\n\nWrite 3 tasks")


@pytest.mark.parametrize("template", ["Only {persona}.", "{persona} {level} {mood}"])
def test_slots_and_attributes_must_match(template):
    with pytest.raises(ValidationError, match="is only in one of them"):
        growth(template=template)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"attributes": {}}, "no attribute"),
        ({"attributes": {"count": ["1"]}}, "two attributes are called count"),
        ({"attribute_files": {"level": "levels.txt"}}, "two attributes are called level"),
        ({"attributes": {"level": []}}, "at least 1 item"),
    ],
)
def test_a_mistake_is_told(options, told):
    with pytest.raises(ValidationError, match=told):
        growth(**options)


def test_values_come_from_a_file(tmp_path):
    (tmp_path / "personas.txt").write_text("a diver\n\na tailor\n", encoding="utf-8")
    part = growth(attributes={}, attribute_files={"persona": str(tmp_path / "personas.txt")})
    assert {asked(part, k).split("- persona: ")[1].split("\n")[0] for k in range(20)} == {"a diver", "a tailor"}


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "personas.txt").write_text("\n")
    with pytest.raises(SeedsError, match="is empty"):
        growth(attributes={}, attribute_files={"persona": str(tmp_path / "personas.txt")})


def recipe_with(folder, **expand):
    document = yaml.safe_load(assets.find("recipes/quickstart.yaml").read_text())
    document["expand"] = {"strategy": "attributes", "tasks": 5, **expand}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_recipe_finds_the_files_beside_it_and_notices_that_one_has_changed(tmp_path):
    (tmp_path / "personas.txt").write_text("a diver\n")
    loaded = load_recipe(recipe_with(tmp_path, attribute_files={"persona": "personas.txt"}))
    assert loaded.expand.options.attribute_files == {"persona": str(tmp_path / "personas.txt")}
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(loaded.to_yaml())
    assert load_recipe(resolved).document() == loaded.document()
    (tmp_path / "personas.txt").write_text("a tailor\n")
    with pytest.raises(RecipeError, match="has changed since this recipe was resolved"):
        load_recipe(resolved)


def test_a_recipe_whose_file_is_missing_is_told(tmp_path):
    with pytest.raises(RecipeError, match=r"expand\.attribute_files\.persona: no file personas\.txt"):
        load_recipe(recipe_with(tmp_path, attribute_files={"persona": "personas.txt"}))
