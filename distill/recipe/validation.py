"""Validates a recipe and its parts' options, and reports one line per error."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from reprlib import Repr
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from distill.core.registry import suggest
from distill.errors import RecipeError, shorten
from distill.recipe.recipe import Recipe
from distill.recipe.sections import BaseOptions, PartSection

MAX_FAULTS = 50
"""Most lines about one section."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Option models by part name, injected by the caller. Each lookup raises `RecipeError` for an unknown name."""

    expand: Callable[[str], type[BaseOptions]]
    collect: Callable[[str], type[BaseOptions]]
    filter: Callable[[str], type[BaseOptions]]
    metric: Callable[[str], type[BaseOptions]]
    train: type[BaseOptions]
    objective: Callable[[str], type[BaseOptions]]
    source: Callable[[str], Any]


def validate(document: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe, its parts' options not yet validated, or its faults."""
    try:
        return Recipe.model_validate(document), []
    except ValidationError as error:
        return None, _faults(error, lambda item: _fault(item, Recipe, ()))


def _faults(error: ValidationError, line: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """One line for each of the first errors, and for the number of the others."""
    errors = error.errors(include_url=False)
    more = [f"and {len(errors) - MAX_FAULTS} more faults"] if len(errors) > MAX_FAULTS else []
    return [*(line(item) for item in errors[:MAX_FAULTS]), *more]


def _fault(item: Mapping[str, Any], model: type[BaseModel], prefix: tuple[str, ...]) -> str:
    """One pydantic error as one line, with a suggestion for an unknown key."""
    where = ".".join([*prefix, *(str(part) for part in item["loc"] if part not in {"one", "several"})])
    if item["type"] == "extra_forbidden":
        return _unknown(where, _known_keys(model, item["loc"][:-1]))
    if item["type"] == "invalid_key" and isinstance(item["input"], int | float):
        return _behind_comma(*where.rpartition(".")[::2])
    if item["type"] == "missing":
        return f"`{where}` is missing"
    message = str(item["msg"]).removeprefix("Value error, ").replace("\n", " ")
    if not where:
        return message
    if (kind := _EXPECTED.get(item["type"])) is not None:
        message = f"expected {kind}"
    if item["type"] in ("float_parsing", "int_parsing") and "," in str(item["input"]):
        message = _POINT
    if item["type"] == "value_error" or not _HIDDEN.isdisjoint(item["loc"]):
        return f"{where}: {message}"
    return f"{where}: {message[0].lower() + message[1:]}, found {_excerpt(item.get('input'))}"


REMOVED_KEYS: Mapping[str, str] = {
    "collect.hedge": "it has gone: no request is sent a second time while the first is under way; leave it out",
    "train.compiled": "it has gone, as its gain was never measured; leave it out",
    "train.guard": (
        "it has gone: a step without a finite loss or gradient norm is skipped, and training stops after five of them; "
        "leave it out"
    ),
}
"""Keys of earlier versions, and what replaced them."""


def is_removed(key: str) -> bool:
    """Whether a dotted recipe key is one of `REMOVED_KEYS`, or lies below one."""
    return any(f"{key}.".startswith(f"{removed}.") for removed in REMOVED_KEYS)


def _unknown(key: str, known: Collection[str]) -> str:
    if key in REMOVED_KEYS:
        return f'unknown key "{key}": {REMOVED_KEYS[key]}'
    section, _, name = key.rpartition(".")
    if _NUMBER.fullmatch(name) and not _NUMBER.fullmatch(section.rpartition(".")[2]):
        return _behind_comma(section, name)
    return f'unknown key "{key}"{suggest(name, known)}'


def _behind_comma(section: str, number: str) -> str:
    return f'{section}: found "{number}" behind a comma, which ends a value; {_POINT}'


_NUMBER = re.compile(r"[\d.,]+(e-?\d+)?", re.IGNORECASE)
_POINT = "write numbers with a point and without other marks, such as 1.5e-3 or 1500"


_EXPECTED = {
    **dict.fromkeys(("list_type", "tuple_type"), "a list, such as [a, b]"),
    **dict.fromkeys(("dict_type", "model_type"), "keys with values, such as {key: value}"),
}
"""What takes the place of pydantic's words, which speak of Python's types."""
_HIDDEN = frozenset({"api_key_env", "headers_env", "base_url", "extra_body"})
"""Keys whose values are never shown, because users put secrets there."""


def _excerpt(value: Any) -> str:
    """The beginning of the value's text; of a large value only a few items are looked at."""
    return shorten(_BOUNDED.repr(value), 60)


_BOUNDED = Repr()
_BOUNDED.maxstring = _BOUNDED.maxother = 200


def _known_keys(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    for key in location:
        if isinstance(key, str) and key in model.model_fields:
            model = next(iter(_models(model.model_fields[key].annotation)), model)
    return [field.alias or name for name, field in model.model_fields.items() if name != "options"]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def with_options(recipe: Recipe, parts: Parts) -> tuple[Recipe, list[str]]:
    """The recipe with every part's options validated and filled in."""
    faults: list[str] = []
    updates: dict[str, Any] = {}
    for name, lookup in (("expand", parts.expand), ("collect", parts.collect)):
        section = getattr(recipe, name)
        if section is not None:
            updates[name] = _with_part_options(section, partial(lookup, section.strategy), (name,), faults)
    if recipe.train is not None:
        kind = recipe.train.objective.kind
        objective = _with_part_options(
            recipe.train.objective, partial(parts.objective, kind), ("train", "objective"), faults
        )
        train = recipe.train.model_copy(update={"objective": objective})
        usual = getattr(objective.options, "for_train", dict)
        updates["train"] = _with_part_options(train, lambda: parts.train, ("train",), faults, usual=usual)
    if recipe.curate is not None:
        updates["curate"] = [
            _with_part_options(rule, partial(parts.filter, rule.filter), ("curate", rule.filter), faults)
            for rule in recipe.curate
        ]
    for source in recipe.sources:
        try:
            parts.source(source.importer)
        except RecipeError as error:
            faults.append(f"sources.{source.display_name}.from: {error}")
    if recipe.compare is not None:
        metrics = [
            _with_part_options(one, partial(parts.metric, one.metric), ("compare", "metrics", one.metric), faults)
            for one in recipe.compare.metrics
        ]
        updates["compare"] = recipe.compare.model_copy(update={"metrics": metrics})
    return recipe.model_copy(update=updates), faults


def _with_part_options(
    section: PartSection,
    model_of: Callable[[], type[BaseOptions]],
    prefix: tuple[str, ...],
    faults: list[str],
    *,
    usual: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda given: {},
) -> PartSection:
    """The section with its part's options; `usual` are defaults by what the section gives."""
    given = section.model_extra or {}
    extra = {**usual(given), **given}
    try:
        model = model_of()
        options = model.model_validate(extra)
    except RecipeError as error:
        faults.append(f"{'.'.join(prefix)}: {error}")
        return section
    except ValidationError as error:
        faults += _faults(error, lambda item: _part_fault(item, model, type(section), prefix))
        return section
    return section.model_copy(update={"options": options})


def _part_fault(
    item: Mapping[str, Any], model: type[BaseOptions], section: type[BaseModel], prefix: tuple[str, ...]
) -> str:
    if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
        keys = [name for name in (*model.model_fields, *section.model_fields) if name != "options"]
        return _unknown(".".join([*prefix, str(item["loc"][0])]), keys)
    return _fault(item, model, prefix)
