"""The `explain` command: what a key, a section or a part of a recipe does, by the shipped schema."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from distill.core.registry import suggest
from distill.errors import RecipeError
from distill.pipeline.recipe_keys import Key, every_key, keys, value_text

WIDTH = 100


def lines(name: str | None) -> list[str]:
    """Lines about a key by its dotted path or the end of it, or about a part by its name; about all sections for none.

    Raises `RecipeError` for an unknown name.
    """
    if name is None:
        return ["the keys of a recipe; `distill explain KEY` shows one, or those of a section:", *_list(keys())]
    blocks: dict[tuple[str, str, str], list[Key]] = {}
    for key in find(name):
        blocks.setdefault((key.path, key.description, value_text(key.node)), []).append(key)
    return [line for same in blocks.values() for line in ("", *_about(same))][1:]


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
    if not key.is_part:
        facts = {
            "value": value_text(key.node),
            "unit": key.node.get("x-unit"),
            "default": _defaults(same),
            "option of": ", ".join(one.part for one in same if one.part),
        }
        yield from (f"  {name}: {fact}" for name, fact in facts.items() if fact)
    yield f"  read by: {key.stage}"
    if key.children:
        yield from _list(key.children)
    elif not key.is_part:
        yield f"  for one run: --set {key.setting}=VALUE"


def _defaults(same: Sequence[Key]) -> str:
    parts: dict[str, list[str]] = {}
    for key in same:
        parts.setdefault(key.default or "none", []).append(key.part)
    if len(parts) == 1:
        return next(iter(parts))
    return "; ".join(f"{default} ({', '.join(names)})" for default, names in parts.items())


def _list(children: Sequence[Key]) -> Iterator[str]:
    """One line per key: its name, default and the first sentence about it."""
    width = max(len(key.name) for key in children)
    for key in children:
        default = f" [{key.default}]" if key.default and not key.children else ""
        yield f"  {key.name:{width}}  {key.summary}{default}"
