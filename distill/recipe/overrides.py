"""`--set a.b=c`, or `{"a.b": c}` from Python: changes to a recipe before it is validated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from distill.embedded import EMBEDDED
from distill.errors import RecipeError
from distill.recipe.checking import Parts
from distill.shelf import suggest

PATH_KEYS = (
    "expand.seeds", "collect.tasks", "teacher.model", "user.model", "judge.model", "student.model", "compare.prompts",
    *(f"compare.answers.{model}" for model in ("base", "student", "teacher", "teacher_again")),
)  # fmt: skip
"""Keys whose value is, or may be, a path."""


def parsed(text: str) -> tuple[str, Any]:
    """The key of an `a.b=c`, and its value, which is YAML. Raises `RecipeError`."""
    key, equals, written = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text}: expected KEY=VALUE, such as --set train.epochs=3")
    try:
        return key, yaml.safe_load(written)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {key}: the value is no YAML: {why_no_yaml(error)}") from None


def why_no_yaml(error: Exception) -> str:
    """What the parser says and where, without the text that it was given, which may hold a secret."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{problem or 'it cannot be decoded'}{where}"


def override(document: dict[str, Any], key: str, value: Any, parts: Parts) -> None:
    """Change one value of the document, by its dotted key. Raises `RecipeError` for what names nothing."""
    if key in PATH_KEYS or _is_rule_path(key, parts):
        value = [_from_here(each) for each in value] if isinstance(value, list) else _from_here(value)
    _assign(document, key.split("."), value)


def _is_rule_path(key: str, parts: Parts) -> bool:
    """Whether a key such as `curate.contamination.files` is one of its filter's paths."""
    section, _, rest = key.partition(".")
    name, _, field = rest.rpartition(".")
    try:
        return section == "curate" and field in parts.filter(name).path_fields
    except RecipeError:
        return False


def _from_here(value: Any) -> Any:
    """An absolute path, for what exists in the current folder."""
    if isinstance(value, str) and value not in EMBEDDED and Path(value).exists():
        return str(Path(value).resolve())
    return value


def _assign(node: Any, keys: list[str], value: Any) -> None:
    said = ".".join(keys)
    for index, key in enumerate(keys[:-1]):
        if isinstance(node, dict):
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
        elif isinstance(node, list):
            node = _rule_named(node, key, said)
        else:
            raise RecipeError(f"--set {said}: {'.'.join(keys[:index])} is a value, not a section")
    if not isinstance(node, dict):
        raise RecipeError(f"--set {said}: {'.'.join(keys[:-1])} is no section")
    node[keys[-1]] = value


def _rule_named(items: list[Any], name: str, said: str) -> Any:
    """The rule of a filter, or the teacher of a name, in a list of them."""
    names = [str(item.get("filter") or item.get("name") or item.get("model") or item.get("from")) for item in items]
    if name not in names:
        raise RecipeError(f'--set {said}: no "{name}" in the recipe\'s list{suggest(name, names)}')
    return items[names.index(name)]
