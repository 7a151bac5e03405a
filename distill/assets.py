"""Finds the shipped prompts and recipes, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from distill.errors import DistillError

SHELVES = ("prompts", "recipes")
_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds `prompts/` and `recipes/`: the package's own in a wheel, the checkout's top otherwise."""
    for folder in (_PACKAGE / "_assets", _PACKAGE.parent):
        if all((folder / shelf).is_dir() for shelf in SHELVES):
            return folder
    raise DistillError(f"prompts/ and recipes/ are missing beside {_PACKAGE}; install distill again")


def find(relative: str) -> Path:
    """The path of a shipped file such as `prompts/seeds/general.jsonl`. Raises `DistillError` when there is none."""
    path = root() / relative
    if not path.exists():
        raise DistillError(f"no shipped file {relative}; expected it under {root()}")
    return path
