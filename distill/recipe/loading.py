"""Loads a recipe: reads YAML, applies overrides, validates."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.core.embedded import EMBEDDED
from distill.core.redaction import STRUCK, learn
from distill.core.registry import suggest
from distill.errors import RecipeError
from distill.recipe.paths import resolve_paths
from distill.recipe.recipe import Recipe
from distill.recipe.validation import Parts, validate, with_options

MAX_RECIPE_BYTES = 1_000_000


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
    path, document = (source, _read_yaml(source)) if isinstance(source, Path) else (Path("recipe"), _plain(source))
    if isinstance(overrides, str):
        raise RecipeError(f"overrides: found the text {overrides!r}, expected a list of such, or a mapping")
    if report_dropped is not None:
        for key in _drop_unknown(document, parts):
            report_dropped(f'{path}: "{key}" is no longer a key; left out')
    for key, value in overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides):
        override(document, key, _plain(value), parts)
    recipe, faults = _validate(document, parts)
    if not faults and recipe is not None:
        recipe, faults = resolve_paths(recipe, path.resolve().parent)
    if faults or recipe is None:
        raise RecipeError("\n".join(f"{path}: {fault}" for fault in faults))
    for section in recipe.models.values():
        for _, literal in section.literals:
            learn(literal)
    return recipe


def load_recorded(document: Mapping[str, Any], parts: Parts) -> Recipe:
    """A recipe as a run has recorded it, with its files' hashes of that time; unknown keys are dropped.

    Raises `RecipeError` as `load` does.
    """
    plain = _unstruck(_plain(document))
    _drop_unknown(plain, parts)
    recipe, faults = _validate(plain, parts)
    if faults or recipe is None:
        raise RecipeError("\n".join(faults))
    return recipe


def _unstruck(value: Any, *, within: bool = False) -> Any:
    """The value with `struck` in place of struck-out secrets, which `validate` would refuse."""
    if isinstance(value, dict):
        return {k: _unstruck(one, within=within or k in ("base_url", "extra_body")) for k, one in value.items()}
    if isinstance(value, list):
        return [_unstruck(one, within=within) for one in value]
    return value.replace(STRUCK, "struck") if within and isinstance(value, str) else value


def _validate(document: dict[str, Any], parts: Parts) -> tuple[Recipe | None, list[str]]:
    recipe, faults = validate(document)
    return with_options(recipe, parts) if recipe is not None else (None, faults)


_UNKNOWN = re.compile(r'unknown key "([^"]+)"')


def _drop_unknown(document: dict[str, Any], parts: Parts) -> list[str]:
    """Remove unknown keys from the document; returns them."""
    removed: list[str] = []
    while True:
        _, faults = _validate(document, parts)
        unknown = [match[1] for fault in faults if (match := _UNKNOWN.match(fault)) and match[1] not in removed]
        if not unknown:
            return removed
        for key in unknown:
            _drop(document, key.split("."))
        removed += unknown


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


def _plain(value: Any) -> Any:
    """A copy of plain dictionaries and lists, in which paths are texts."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class _Loader(yaml.SafeLoader):
    """Booleans as in YAML 1.2: `on` and `no` are texts (a filter's key `on`, the language code `no`)."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(path: Path) -> dict[str, Any]:
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


PATH_KEYS = (
    "expand.seeds", "collect.tasks", "teacher.model", "user.model", "judge.model", "student.model", "compare.prompts",
    *(f"compare.answers.{model}" for model in ("base", "student", "teacher", "teacher_again")),
)  # fmt: skip
"""Keys whose value is, or may be, a path."""


def parse_override(text: str) -> tuple[str, Any]:
    """The key of an `a.b=c` and its YAML value. Raises `RecipeError`."""
    key, equals, yaml_text = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text}: expected KEY=VALUE, such as --set train.epochs=3")
    try:
        return key, yaml.safe_load(yaml_text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {key}: the value is no YAML: {why_no_yaml(error)}") from None


def why_no_yaml(error: Exception) -> str:
    """The parser's message with line and column, without the text itself, which may contain a secret."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{problem or 'it cannot be decoded'}{where}"


def override(document: dict[str, Any], key: str, value: Any, parts: Parts) -> None:
    """Change one value of the document by its dotted key. Raises `RecipeError` for an unusable key."""
    if key in PATH_KEYS or _is_rule_path(key, parts):
        value = [_from_here(each) for each in value] if isinstance(value, list) else _from_here(value)
    _assign(document, key.split("."), value)


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
    if isinstance(value, str) and value not in EMBEDDED and Path(value).exists():
        return str(Path(value).resolve())
    return value


def _assign(node: Any, keys: list[str], value: Any) -> None:
    dotted = ".".join(keys)
    for index, key in enumerate(keys[:-1]):
        if isinstance(node, dict):
            if node.get(key) is None:
                node[key] = {}
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
    names = [str(item.get("filter") or item.get("name") or item.get("model") or item.get("from")) for item in items]
    if name not in names:
        raise RecipeError(f'--set {dotted}: no "{name}" in the recipe\'s list{suggest(name, names)}')
    return items[names.index(name)]
