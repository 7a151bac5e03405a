"""Resolves a part's name in a recipe: an entry of a registry dict, or a dotted path that the user allowed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from distill.core.hashing import file_sha256, text_sha256
from distill.errors import RecipeError


def suggest(name: str, known: Collection[str]) -> str:
    """`; did you mean "x"?`, or the list of known names."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; expected one of {', '.join(sorted(known))}"


def part(shelf: Mapping[str, str], name: str, *, kind: str, allowed: Collection[str] = ()) -> Any:
    """The class behind `name`.

    A name with a colon is a dotted path (`package.module:thing`) and is imported only when its top-level package is
    in `allowed`, because importing runs code. Raises `RecipeError` for an unknown or forbidden name.
    """
    if ":" in name:
        return _foreign(name, kind, allowed)
    if name not in shelf:
        raise RecipeError(f'unknown {kind} "{name}"{suggest(name, shelf)}')
    module, _, attribute = shelf[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _foreign(name: str, kind: str, allowed: Collection[str]) -> Any:
    module, _, attribute = name.partition(":")
    package = module.partition(".")[0]
    if package not in allowed:
        raise RecipeError(
            f'{kind} "{name}" would run code of the package {package}; add --allow-parts {package} if you trust it'
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f'{kind} "{name}" cannot be imported: {error}') from error


@cache
def source_sha256(module: str) -> str:
    """The SHA-256 of a module's source, without importing it; of its name where there is no source."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return text_sha256(module)
    return file_sha256(Path(spec.origin))
