"""Every key of a recipe, read from recipes/recipe.schema.json: for `explain`, completion and recipes/KEYS.md.

Imports neither pydantic nor any part, so that completion is quick.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from distill.core import assets
from distill.core.files import inline_yaml

Node = Mapping[str, Any]
SCHEMA = "recipe.schema.json"
STAGES = {
    "expand": "expand", "collect": "collect", "sources": "collect", "collect.test": "curate", "test": "curate",
    "curate": "curate", "student": "train", "train": "train", "compare": "compare",
    "teacher": "expand, collect, curate, compare", "judge": "expand, collect, curate, compare",
    "user": "collect", "weaker": "collect",
    "name": "all", "seed": "all", "budget_usd": "all", "reuse": "all", "files": "all",
}  # fmt: skip
"""The stages that read a key, by the beginning of its path."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a recipe, or a shipped part with its options as children."""

    path: str
    """Dotted, as `--set` takes it."""
    node: Node
    """Its JSON Schema."""
    part: str = ""
    """The part whose option it is; of a part, its own name."""
    is_part: bool = False
    required: bool = False
    children: tuple[Key, ...] = ()

    @property
    def name(self) -> str:
        """The last word of the path."""
        return self.path.rpartition(".")[2]

    @property
    def description(self) -> str:
        """What it does."""
        return str(self.node.get("description", ""))

    @property
    def summary(self) -> str:
        """The first sentence of the description."""
        return re.split(r"(?<!al)\. ", self.description)[0].rstrip(".")

    @property
    def setting(self) -> str:
        """What is written before `=` in `--set`; for a strategy all of it."""
        section, _, rest = self.path.partition(".")
        if self.is_part and section in ("expand", "collect"):
            return f"{section}.strategy={self.part}"
        return f"sources.NAME.{rest}" if section == "sources" and rest else self.path

    @property
    def stage(self) -> str:
        """The stages that read it."""
        return STAGES[max((head for head in STAGES if f"{self.path}.".startswith(f"{head}.")), key=len)]

    @property
    def default(self) -> str:
        """Its default as YAML; `required` where it has none, empty where leaving it out is the default."""
        if self.required:
            return "required"
        value = _without_empty(self.node.get("default"))
        return "" if value is None else inline_yaml(value)


@cache
def schema() -> Node:
    """The shipped JSON Schema of a recipe."""
    document: Node = json.loads(schema_text())
    return document


def schema_text() -> str:
    """The shipped JSON Schema of a recipe as text."""
    return assets.find(f"recipes/{SCHEMA}").read_text(encoding="utf-8")


@cache
def keys() -> tuple[Key, ...]:
    """The keys at the top of a recipe."""
    return _children(schema(), "")


def every_key() -> Iterator[Key]:
    """All keys and parts, each before its children; a key that several parts have, once for each."""
    waiting = list(reversed(keys()))
    while waiting:
        yield (key := waiting.pop())
        waiting.extend(reversed(key.children))


def values(node: Node) -> list[Any]:
    """The values that a key is confined to, or that it may have beside others."""
    return [choice for branch in _branches(node) for choice in _choices(branch)]


def _choices(branch: Node) -> list[Any]:
    if branch.get("type") == "boolean":
        return [True, False]
    return [branch["const"]] if "const" in branch else list(branch.get("enum", ()))


def usual_values(key: Key) -> list[str]:
    """The values that a key is chosen from, else its default, as `--set` takes them."""
    return [inline_yaml(one) for one in values(key.node)] or [key.default] * (key.default not in ("", "required"))


def value_text(node: Node) -> str:
    """The values that a key may have, in words."""
    others = [_branch_text(branch) for branch in _branches(node) if not _choices(branch)]
    choices = ", ".join(dict.fromkeys(map(inline_yaml, values(node))))
    return " or ".join(dict.fromkeys(text for text in (choices, *others) if text))


def _branch_text(node: Node) -> str:
    kind = str(node.get("type", "any value"))
    if kind == "array":
        return f"list of {value_text(node['items'])}" if node.get("items") else "list"
    if kind == "object" and "properties" in node:
        return "section"
    if kind == "object":
        inner = node.get("additionalProperties")
        return f"mapping to {value_text(inner)}" if isinstance(inner, dict) else "mapping"
    text = "package.module:thing" if node.get("pattern") == ":" else "text"
    return (text if kind == "string" else kind) + _range_text(node)


def _range_text(node: Node) -> str:
    words = {"exclusiveMinimum": "over", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    bounds = [f"{word} {node[key]}" for key, word in words.items() if key in node]
    return f" {' '.join(bounds)}" if bounds else ""


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: each for key, each in value.items() if each not in (None, [], {}, "")} or None
    return value or None if isinstance(value, (list, str)) else value


def _branches(node: Node) -> Iterator[Node]:
    """A node's alternatives, references resolved, except `null`."""
    if "$ref" in node:
        node = schema()["$defs"][node["$ref"].rpartition("/")[2]]
    alternatives = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    for each in alternatives:
        yield from _branches(each)
    if not alternatives and node.get("type") != "null":
        yield node


def _objects(node: Node) -> Iterator[tuple[Node, bool]]:
    """The sections that a value may be, and whether they stand in a list."""
    for branch in _branches(node):
        if branch.get("type") == "array" and branch.get("items"):
            yield from ((one, True) for one, _ in _objects(branch["items"]))
        elif "properties" in branch:
            yield branch, False


def _part_name(section: Node) -> str:
    """The name of the part whose options a section holds; empty for others."""
    return next((str(node["const"]) for node in section["properties"].values() if "const" in node), "")


def _children(node: Node, path: str, part: str = "") -> tuple[Key, ...]:
    """The keys of a section, then its parts."""
    sections = list(_objects(node))
    parts = [(name, section, in_list) for section, in_list in sections if (name := _part_name(section))]
    plain = [section for section, _ in sections if not _part_name(section)]
    if not parts:
        return _properties(plain, path, part)
    own = plain[-1]  # that of a part of one's own: the section's keys alone
    named = [_only(section, own["properties"]) for _, section, _ in parts]
    shared = _properties([] if parts[0][2] else [*named, own], path, part)
    return (*shared, *(_part(name, section, path, in_list, own) for name, section, in_list in parts))


def _only(section: Node, names: Collection[str]) -> Node:
    return {**section, "properties": {name: node for name, node in section["properties"].items() if name in names}}


def _part(name: str, section: Node, path: str, in_list: bool, shared: Node) -> Key:
    own = _only(section, section["properties"].keys() - shared["properties"].keys())
    children = _properties([own], f"{path}.{name}" if in_list else path, name)
    return Key(f"{path}.{name}", section, name, is_part=True, children=children)


def _properties(sections: Sequence[Node], path: str, part: str) -> tuple[Key, ...]:
    """The keys of alternative sections: a key with different values in them has all of these."""
    nodes: dict[str, list[Node]] = {}
    for section in sections:
        for name, node in section["properties"].items():
            if node not in nodes.setdefault(name, []):
                nodes[name].append(node)
    required = {name for name in nodes if all(name in section.get("required", ()) for section in sections)}
    return tuple(
        _key(f"{path}.{name}".lstrip("."), alternatives, part, required=name in required)
        for name, alternatives in nodes.items()
    )


def _key(path: str, alternatives: Sequence[Node], part: str, *, required: bool) -> Key:
    default = next(({"default": one["default"]} for one in alternatives if "default" in one), {})
    node = alternatives[0] if len(alternatives) == 1 else {**alternatives[-1], **default, "anyOf": alternatives}
    return Key(path, node, part, required=required, children=_children(node, path, part))
