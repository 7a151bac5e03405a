"""Reads YAML of bounded size and depth into plain values."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from distill.errors import RecipeError, shorten

MAX_BYTES = 1_000_000
MAX_VALUES = 50_000
"""Most keys and values, with 100 characters of a longer one counting as another; an alias counts as what it stands
for. As many take the parser 2 s."""
MAX_DEPTH = 50
MAX_DIGITS = 40
"""Longest text of a number."""


class _Loader(yaml.SafeLoader):
    """Booleans as in YAML 1.2: `on` and `no` are texts (a filter's key `on`, the language code `no`)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, unless with it there are too many or it lies too deep."""
        before, is_alias = self._values, self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"nested over {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if is_alias:
            self._values += self._sizes.get(node, MAX_VALUES)  # one within itself has no size yet
        elif isinstance(node, yaml.ScalarNode):
            self._values += 1 + len(node.value) // 100
            if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
                self._refuse(f"a number of {len(node.value)} characters")
        else:
            self._values += 1
        if self._values > MAX_VALUES:
            self._refuse(f"over {MAX_VALUES:,} keys and values, with each alias counted as what it stands for")
        self._sizes[node] = self._values - before
        if isinstance(node, yaml.MappingNode):
            self._require_once(node)
        return node

    def _require_once(self, node: yaml.MappingNode) -> None:
        """Refuse a key that stands twice, of which YAML would keep the last without a word."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                problem = f'the key "{shorten(key.value, 60)}" stands twice in one mapping'
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)

    def _refuse(self, problem: str) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]  # without a type in the stubs


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a recipe's file. Raises `RecipeError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}; check the path") from error
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path}: over {MAX_BYTES} bytes; expected a recipe")
    document = parse_yaml(data, f"{path}: no usable YAML")
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: found {type(document).__name__}, expected a mapping of sections (name, teacher …)")
    return document


def parse_yaml(data: bytes | str, fault: str) -> Any:
    """The value of a YAML text. Raises `RecipeError`, whose line begins with `fault`."""
    try:
        return yaml.load(data.decode() if isinstance(data, bytes) else data, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{fault}: {_why(error)}") from None


def _why(error: Exception) -> str:
    """The parser's message with line and column, without the text itself, which may contain a secret."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    default = "it is not UTF-8" if isinstance(error, UnicodeError) else "a number, date or character cannot be read"
    return f"{shorten(problem or default, 200)}{where}"


def plain(value: Any, *keys: Any) -> Any:
    """A copy of plain dictionaries and lists, with texts for paths; `keys` lead to the value.

    Raises `RecipeError` for what JSON cannot hold, and for integers beyond 64 bits.
    """
    problem = ""
    if len(keys) > MAX_DEPTH:
        problem = f"nested over {MAX_DEPTH} levels deep"
    elif isinstance(value, (date, bytes, set)):
        problem = f"found a {type(value).__name__}; expected a text, so put it into quotation marks"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        problem = f"found an integer of {value.bit_length()} bits; expected one of 63 at most"
    elif isinstance(value, float) and not math.isfinite(value):
        problem = f"found {value}; expected a finite number"
    if problem:
        raise RecipeError(": ".join(filter(None, [shorten(".".join(map(str, keys)), 100), problem])))
    if isinstance(value, Mapping):
        return {plain(key): plain(each, *keys, key) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, *keys, place) for place, each in enumerate(value)]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
