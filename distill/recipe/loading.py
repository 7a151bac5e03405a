"""Loads a recipe: reads YAML, applies overrides, validates."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from distill.core.embedded import EMBEDDED
from distill.core.redaction import STRUCK, learn
from distill.core.registry import suggest
from distill.errors import RecipeError, one_line
from distill.recipe.continued import continue_student
from distill.recipe.paths import resolve_paths
from distill.recipe.recipe import Recipe
from distill.recipe.validation import Parts, validate, with_options
from distill.recipe.yaml_reader import parse_yaml, plain, read_yaml

MOST_ROUNDS = 10
"""Rounds of validation in which unknown keys are dropped, up to `MAX_FAULTS` in each."""
MAX_LINE = 1_000
"""Most characters of a fault."""


def load(
    source: Path | Mapping[str, Any],
    parts: Parts,
    *,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    report_dropped: Callable[[str], None] | None = None,
) -> Recipe:
    """Read, override, validate and resolve a recipe. Raises `RecipeError` with one line for each fault.

    `source` is a file, or the content of one. `overrides` are texts `a.b=c` whose value is YAML, or values by dotted
    key; their paths are relative to the current folder. Other paths are relative to the recipe's folder (the current
    one where there is no file), then to the shipped prompts/. `report_dropped` is for a run's own copy of the recipe:
    unknown keys of the file are dropped, with a call for each.
    """
    path, document = (source, read_yaml(source)) if isinstance(source, Path) else (Path("recipe"), plain(source))
    if isinstance(overrides, str):
        raise RecipeError(f"overrides: found the text {overrides!r}, expected a list of such, or a mapping")
    if report_dropped is not None:
        for key in _drop_unknown(document, parts):
            report_dropped(f'{path}: "{key}" is no longer a key; left out')
    for key, value in overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides):
        override(document, key, plain(value, *key.split(".")), parts)
    contradictions = continue_student(document, path.resolve().parent)
    recipe, faults = _validate(document, parts)
    faults = contradictions + faults
    if not faults and recipe is not None:
        recipe, faults = resolve_paths(recipe, path.resolve().parent)
    if faults or recipe is None:
        raise RecipeError("\n".join(f"{path}: {one_line(fault, MAX_LINE)}" for fault in faults))
    for section in recipe.models.values():
        for _, literal in section.literals:
            learn(literal)
    return recipe


def load_recorded(document: Mapping[str, Any], parts: Parts) -> Recipe:
    """A recipe as a run has recorded it, with its files' hashes of that time; unknown keys are dropped.

    Raises `RecipeError` as `load` does.
    """
    values = _unstruck(plain(document))
    _drop_unknown(values, parts)
    recipe, faults = _validate(values, parts)
    if faults or recipe is None:
        raise RecipeError("\n".join(one_line(fault, MAX_LINE) for fault in faults))
    return recipe


def _unstruck(value: Any, *, within: bool = False) -> Any:
    """The value with `struck` in place of struck-out secrets, which `validate` would refuse."""
    if isinstance(value, dict):
        return {k: _unstruck(one, within=within or k in ("base_url", "extra_body")) for k, one in value.items()}
    if isinstance(value, list):
        return [_unstruck(one, within=within) for one in value]
    return value.replace(STRUCK, "struck") if within and isinstance(value, str) else value


def _validate(document: dict[str, Any], parts: Parts) -> tuple[Recipe | None, list[str]]:
    try:
        recipe, faults = validate(plain(document))
    except RecipeError as error:
        return None, [str(error)]
    return with_options(recipe, parts) if recipe is not None else (None, faults)


_UNKNOWN = re.compile(r'unknown key "([^"]+)"')


def _drop_unknown(document: dict[str, Any], parts: Parts) -> list[str]:
    """Remove unknown keys from the document, a few hundred at most; returns them."""
    removed: list[str] = []
    for _ in range(MOST_ROUNDS):
        _, faults = _validate(document, parts)
        unknown = [match[1] for fault in faults if (match := _UNKNOWN.match(fault)) and match[1] not in removed]
        for key in unknown:
            _drop(document, key.split("."))
        removed += unknown
        if not unknown:
            break
    return removed


def _drop(node: Any, keys: list[str]) -> None:
    """Remove a key; on its path, a number or a name selects a list's items by position or by one of their values."""
    first, *rest = keys
    if isinstance(node, dict) and not rest:
        node.pop(first, None)
    elif isinstance(node, dict):
        _drop(node.get(first), rest)
    elif isinstance(node, list) and rest:
        for place, item in enumerate(node):
            if first == str(place) or (isinstance(item, dict) and first in item.values()):
                _drop(item, rest)


PATH_KEYS = (
    "expand.seeds", "collect.tasks", "teacher.model", "user.model", "judge.model", "weaker.model", "student.model",
    "compare.prompts", *(f"compare.answers.{model}" for model in ("base", "student", "teacher", "teacher_again")),
)  # fmt: skip
"""Keys whose value is, or may be, a path."""


def parse_override(text: str) -> tuple[str, Any]:
    """The key of an `a.b=c` and its YAML value. Raises `RecipeError`."""
    key, equals, yaml_text = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text}: expected KEY=VALUE, such as --set train.epochs=3")
    return key, parse_yaml(yaml_text, f"--set {key}: the value is no usable YAML")


def override(document: dict[str, Any], key: str, value: Any, parts: Parts) -> None:
    """Change one value of the document by its dotted key. Raises `RecipeError` for an unusable key."""
    if key in PATH_KEYS or _is_rule_path(key, parts):
        value = [_from_here(each) for each in value] if isinstance(value, list) else _from_here(value)
    _assign(document, key.split("."), value)


SHORT = ("collect.test.", "test.")
"""Sections for which a recipe may give the count alone."""


def _is_rule_path(key: str, parts: Parts) -> bool:
    """Whether a key such as `curate.contamination.files` names a path field of a filter."""
    section, _, rest = key.partition(".")
    name, _, field = rest.rpartition(".")
    try:
        return section == "curate" and field in parts.filter(name).path_fields
    except RecipeError:
        return False


def _from_here(value: Any) -> Any:
    """The absolute path, if the value names a file or folder in the current folder."""
    if isinstance(value, str) and value not in EMBEDDED and os.path.exists(value):
        return str(Path(value).resolve())
    return value


def _assign(node: Any, keys: list[str], value: Any) -> None:
    dotted = ".".join(keys)
    for index, key in enumerate(keys[:-1]):
        if isinstance(node, dict):
            if node.get(key) is None:
                node[key] = {}
            elif dotted.startswith(SHORT) and isinstance(node[key], int):
                node[key] = {"count": node[key]}
            node = node[key]
        elif isinstance(node, list):
            node = _item_named(node, key, dotted)
        else:
            raise RecipeError(f"--set {dotted}: {'.'.join(keys[:index])} is a value, not a section")
    if not isinstance(node, dict):
        raise RecipeError(f"--set {dotted}: {'.'.join(keys[:-1])} is no section")
    node[keys[-1]] = value


def _item_named(items: list[Any], name: str, dotted: str) -> Any:
    """The item of a list of rules, teachers or sources that has this name."""
    keys = ("filter", "metric", "name", "model", "from")
    each = (item if isinstance(item, dict) else {} for item in items)
    names = [next((str(one[key]) for key in keys if one.get(key)), Path(str(one.get("path", ""))).stem) for one in each]
    if name not in names:
        raise RecipeError(f'--set {dotted}: no "{name}" in the recipe\'s list{suggest(name, names)}')
    return items[names.index(name)]
