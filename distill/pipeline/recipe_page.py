"""Writes recipes/recipe.schema.json and recipes/KEYS.md from the fields and their docstrings: `make keys`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest

from distill.core import assets
from distill.pipeline.recipe_keys import SCHEMA, Key, keys, value_text
from distill.pipeline.recipe_schema import build

PAGE = "KEYS.md"
_HEAD = """\
# Every key of a recipe

Generated from the fields and their docstrings (`make keys`). `distill explain KEY` says the same in the terminal, and
`recipe.schema.json` tells it to editors. A key without a default may be left out. Paths are as `--set` takes them; the
items of `sources` and of a list of teachers have a name in theirs, as in `--set sources.NAME.take=100`."""
_COLUMNS = ("| key | value | default | unit | read by | what it does |", "|---|---|---|---|---|---|")


def schema_json() -> str:
    """The text of recipe.schema.json."""
    return json.dumps(build(), indent=1, ensure_ascii=False) + "\n"


def page() -> str:
    """The text of KEYS.md, by the schema's file."""
    shown: dict[tuple[str, ...], Key] = {}
    lines = [_HEAD, "", "## The whole recipe", "", *_COLUMNS, *map(_row, keys())]
    for key in keys():
        if key.children:
            lines += ["", f"## {key.path}", "", _text(key, shown), *_tables(key, shown)]
    return "\n".join(lines) + "\n"


def _tables(section: Key, shown: dict[tuple[str, ...], Key]) -> Iterator[str]:
    """The table of a section's own keys, then one for each of its parts."""
    rows = list(_rows(section, shown))
    if rows:
        yield from ("", *_COLUMNS, *rows)
    for part in _parts(section):
        yield from ("", f"### {part.path}", "", part.description)
        yield from _tables(part, shown)


def _parts(section: Key) -> Iterator[Key]:
    for key in section.children:
        if key.is_part:
            yield key
        elif not section.is_part:
            yield from _parts(key)


def _rows(section: Key, shown: dict[tuple[str, ...], Key]) -> Iterator[str]:
    """A row for each key of a section; of one like a section that is shown already, for those that differ from it."""
    earlier = _earlier(section, shown)
    for key, other in zip_longest(section.children, earlier.children if earlier is not None else ()):
        if not key.is_part and (other is None or key.description != other.description):
            yield _row(key, _text(key, shown))
            yield from _rows(key, shown)


def _text(key: Key, shown: dict[tuple[str, ...], Key]) -> str:
    earlier = _earlier(key, shown)
    return key.description if earlier is None else f"{key.description} Keys as of `{earlier.path}`."


def _earlier(section: Key, shown: dict[tuple[str, ...], Key]) -> Key | None:
    """The section with the same keys that is shown already; notes this one otherwise."""
    names = tuple(child.name for child in section.children)
    earlier = shown.setdefault(names, section)
    return None if not names or earlier.path == section.path else earlier


def _row(key: Key, text: str = "") -> str:
    default = f"`{key.default}`" if key.default not in ("", "required") else key.default
    unit = str(key.node.get("x-unit", ""))
    cells = (f"`{key.path}`", value_text(key.node), default, unit, key.stage, text or key.description)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def write() -> None:
    """Write both files."""
    folder = assets.find("recipes")
    (folder / SCHEMA).write_text(schema_json(), encoding="utf-8")
    (folder / PAGE).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write()
