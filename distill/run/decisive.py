"""The options that determine a stage's outputs, as recorded in run.json: values by recipe key, without defaults.

A key that an older version did not have is absent from its records, and so counts as its default.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from distill.core.credentials import without_literals
from distill.core.files import inline_yaml, to_json
from distill.core.registry import source_sha256
from distill.errors import shorten
from distill.recipe import Recipe
from distill.recipe.validation import is_removed
from distill.text.tokens import visible

OLD_DEFAULTS: Mapping[str, tuple[int, Any, Any]] = {}
"""Defaults that have changed, by recipe key: the stage's `REVISION` that changed it, the old value, the new value."""
EMPTY: tuple[Any, ...] = (None, "", (), [], {})
_MAX_SHOWN = 60


def flat(
    section: Any, name: str, *, only: Collection[str] = (), files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A section's values by dotted key, without those at their default.

    `section` is a pydantic model or a dataclass; with `only`, these fields of it. A path in `files` (a resolved
    recipe's `files`) is replaced by the SHA-256 of its content; secrets are redacted.
    """
    values: dict[str, Any] = {}
    for key, value, default in _fields(section):
        if (only and key not in only) or value == default:
            continue
        if isinstance(value, BaseModel):
            values |= flat(value, f"{name}.{key}", files=files) or {f"{name}.{key}": {}}
        else:
            values[f"{name}.{key}"] = _plain(without_literals(value, key), files or {})
    return values


def _fields(section: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each field's name, value and default."""
    if isinstance(section, BaseModel):
        for key, field in type(section).model_fields.items():
            if not field.exclude:
                yield key, getattr(section, key), field.get_default(call_default_factory=True)
        return
    for one in fields(section):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        yield one.name, getattr(section, one.name), default


def _plain(value: Any, files: Mapping[str, str]) -> Any:
    """JSON, with the SHA-256 of a file in place of its path."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one, files) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, files) for one in value]
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(exclude_defaults=True), files)
    return f"sha256 {files[value]}" if isinstance(value, str) and value in files else to_json(value)


def parts(
    names: Iterable[tuple[str, BaseModel]], key: str, *, files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A list of parts: their order, each part's options by its name, and the source of user-defined ones.

    The name of a part that occurs twice is followed by its position.
    """
    pairs = list(names)
    values: dict[str, Any] = {key: [name for name, _ in pairs]}
    for own, (name, options) in zip(_part_keys(key, values[key]), pairs, strict=True):
        values |= flat(options, own, files=files) | of_part(own, name)
    return values


def _part_keys(key: str, names: Sequence[str]) -> list[str]:
    return [f"{key}.{name}" + f".{place}" * (names.count(name) > 1) for place, name in enumerate(names)]


def of_part(key: str, name: str) -> dict[str, str]:
    """The SHA-256 of a user-defined part's source; empty for a shipped one."""
    return {f"{key} source": source_sha256(name.partition(":")[0])} if ":" in name else {}


def completed(options: Mapping[str, Any], revision: int) -> dict[str, Any]:
    """The options, with the defaults of that revision where they have changed since.

    Keys that recipes no longer have are left out.
    """
    changed = {key: old if revision < since else new for key, (since, old, new) in OLD_DEFAULTS.items()}
    return {key: value for key, value in {**changed, **options}.items() if not is_removed(key)}


def defaults(recipe: Recipe) -> dict[str, Any]:
    """The default of each key of a recipe's sections and parts, by the keys of the stages' options."""
    return {**_defaults(recipe, ""), **_defaults(recipe.held_out, "test")}


def _defaults(section: BaseModel, name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value, default in _fields(section):
        own = f"{name}.{key}".lstrip(".")
        several = [one for one in value if isinstance(one, BaseModel)] if isinstance(value, list) else []
        for each, inner in zip(_part_keys(own, [*map(_name_of, several)]), several, strict=True):
            values |= _defaults(inner, each)
        values |= _defaults(value, own) if isinstance(value, BaseModel) else {own: default}
    return values | _defaults(options, name) if (options := getattr(section, "options", None)) else values


def _name_of(item: Any) -> str:
    """What an item of a list in a recipe is called: a rule, a metric, a source or a teacher."""
    names = (getattr(item, attribute, None) for attribute in ("filter", "metric", "display_name"))
    return str(next(filter(None, names), ""))


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """The changed keys with old and new values, one short text each; of two hashes only that they differ.

    A key that only one has is at its value in `defaults` in the other, and unset where there is none.
    """
    pairs = {
        key: tuple(side.get(key, to_json(defaults.get(key))) for side in (old, new))
        for key in sorted(old.keys() | new.keys())
    }
    return [
        f"{key.removesuffix(' sha256')} has changed"
        if all(_SHA256.match(str(value)) for value in pair)
        else f"{key} {shown(pair[0])} → {shown(pair[1])}"
        for key, pair in pairs.items()
        if pair[0] != pair[1]
    ]


_SHA256 = re.compile(r"^(sha256 )?[0-9a-f]{64}$")


def shown(value: Any) -> str:
    """A value of a recipe as in YAML, on one line of at most 60 characters; `unset` for None and for nothing in it."""
    return "unset" if value in EMPTY else shorten(visible(inline_yaml(value)), _MAX_SHOWN)
