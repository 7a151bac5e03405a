"""Reads a recipe's file, and makes a validated recipe of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.errors import RecipeError
from distill.recipe.checking import Parts, validate, with_options
from distill.recipe.overrides import override, parsed, why_no_yaml
from distill.recipe.resolving import resolved
from distill.recipe.whole import Recipe
from distill.redaction import learn

MAX_RECIPE_BYTES = 1_000_000


def load(
    source: Path | Mapping[str, Any], parts: Parts, *, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Read, override, validate and resolve a recipe. Raises `RecipeError` with one line for each fault found.

    `source` is a file, or what such a file holds. `overrides` are `a.b=c` texts, whose value is YAML, or values by
    their dotted keys; a path in them is relative to the current folder. Other paths are relative to the recipe's
    folder (the current one where there is no file), then to the shipped prompts/.
    """
    path, document = (source, _read(source)) if isinstance(source, Path) else (Path("recipe"), _plain(source))
    if isinstance(overrides, str):
        raise RecipeError(f"overrides: found the text {overrides!r}, expected a list of such, or a mapping")
    for key, value in overrides.items() if isinstance(overrides, Mapping) else map(parsed, overrides):
        override(document, key, _plain(value), parts)
    recipe, faults = validate(document)
    if recipe is not None:
        recipe, faults = with_options(recipe, parts)
    if not faults and recipe is not None:
        recipe, faults = resolved(recipe, path.resolve().parent)
    if faults or recipe is None:
        raise RecipeError("\n".join(f"{path}: {fault}" for fault in faults))
    for section in recipe.asked.values():
        for _, literal in section.literals:
            learn(literal)
    return recipe


def _plain(value: Any) -> Any:
    """What a file would hold: new dictionaries and lists, and the texts of paths."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class _Loader(yaml.SafeLoader):
    """Booleans as in YAML 1.2: `on: answer` has a key of two letters, and `no` is Norwegian."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: over {MAX_RECIPE_BYTES} bytes; expected a recipe")
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: no YAML: {why_no_yaml(error)}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: found {type(document).__name__}, expected a mapping of sections (name, teacher …)")
    return document
