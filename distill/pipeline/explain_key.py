"""The `explain` command: what a key, a section or a part of a recipe does, by the shipped schema."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from distill.core.registry import suggest
from distill.errors import RecipeError
from distill.pipeline.recipe_keys import Key, every_key, keys, value_text

WIDTH = 100
IN_RECIPE = {
    "expand": "expand: {{strategy: {}}}",
    "collect": "collect: {{strategy: {}}}",
    "curate": "curate: [{{filter: {}}}]",
    "compare": "compare: {{metrics: [{{metric: {}}}]}}",
}
"""How a recipe names a part."""


def lines(name: str | None) -> list[str]:
    """Lines about a key by its dotted path or the end of it, or about a part by its name; about all sections for none.

    Raises `RecipeError` for an unknown name.
    """
    if name is None:
        return ["the keys of a recipe; `distill explain KEY` shows one, or those of a section:", *_list(keys())]
    blocks: dict[tuple[str, str, str], list[Key]] = {}
    for key in find(name):
        blocks.setdefault((key.path, key.description, value_text(key.node)), []).append(key)
    text = [line for same in blocks.values() for line in ("", *_about(same))][1:]
    others = sorted({key.path for key in every_key() if key.name == name} - {path for path, _, _ in blocks})
    return [*text, *([f"  see also: {', '.join(others)}"] if others else [])]


def find(name: str) -> list[Key]:
    """The keys and parts of that path, else those whose path ends in it. Raises `RecipeError` where there is none."""
    every = list(every_key())
    exact = [key for key in every if name in (key.path, _with_part(key))]
    if matches := exact or [key for key in every if f".{_with_part(key)}".endswith(f".{name}")]:
        return matches
    parent, _, last = name.rpartition(".")
    siblings = [child.name for key in every if key.path == parent for child in key.children]
    from distill.recipe.validation import REMOVED_KEYS

    why = f": {REMOVED_KEYS[name]}" if name in REMOVED_KEYS else None
    known = suggest(last, siblings) if siblings else _suggestion(name, every)
    raise RecipeError(f'unknown key "{name}"{why or known}')


def _suggestion(name: str, every: Sequence[Key]) -> str:
    close = suggest(name, {key.path for key in every} | {key.name for key in every})
    return close if "did you mean" in close else "; `distill explain` lists the sections"


def _with_part(key: Key) -> str:
    """The path with the part's name in it, also where `--set` takes it without."""
    section, _, rest = key.path.partition(".")
    is_inside = not key.part or key.is_part or f".{key.part}." in f".{key.path}"
    return key.path if is_inside else f"{section}.{key.part}.{rest}"


def _about(same: Sequence[Key]) -> Iterator[str]:
    """Lines about a key that several parts may have with different defaults."""
    key = same[0]
    yield from textwrap.wrap(f"{key.path}: {key.description}", WIDTH, subsequent_indent="  ")
    facts = {
        "value": value_text(key.node) if not key.is_part else "",
        "unit": key.node.get("x-unit"),
        "default": _defaults(same) if not key.children else "",
        "option of": ", ".join(one.part for one in same if not one.is_part),
        "read by": key.stage,
        "in a recipe": IN_RECIPE[key.path.partition(".")[0]].format(key.part) if key.is_part else "",
        "for one run": f"--set {key.setting}=VALUE" if not key.children and not key.is_part else "",
    }
    yield from (f"  {name}: {fact}" for name, fact in facts.items() if fact)
    yield from _list(key.children)


def _defaults(same: Sequence[Key]) -> str:
    parts: dict[str, list[str]] = {}
    for key in same:
        parts.setdefault(key.default or "none", []).append(key.part)
    if len(parts) == 1:
        return next(iter(parts))
    return "; ".join(f"{default} ({', '.join(names)})" for default, names in parts.items())


def _list(children: Sequence[Key]) -> Iterator[str]:
    """One line per key: its name, default and the first sentence about it."""
    width = max((len(key.name) for key in children), default=0)
    for key in children:
        default = f" [{key.default}]" if key.default and not key.children else ""
        head = f"  {key.name:{width}}  "
        yield from textwrap.wrap(f"{head}{key.summary}{default}", WIDTH + 20, subsequent_indent=" " * len(head))
