"""Finds the shipped prompts and recipes, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path
from string import Template

from distill.errors import DistillError

SHELVES = ("prompts", "recipes")
_PACKAGE = Path(__file__).resolve().parents[1]


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


def load(name: str) -> str:
    """The text of `prompts/<name>`, such as `strategies/self_instruct.txt`, without white space at its end."""
    return find(f"prompts/{name}").read_text(encoding="utf-8").rstrip()


def fill(template: str, **values: str) -> str:
    """The template with each `$name` replaced by its value; `$$` is a dollar sign.

    Values are put in once and never looked into, so a `$name` inside a model's text stays what it is.
    Raises `DistillError` when a placeholder has no value or a value no placeholder.
    """
    parsed = Template(template)
    if not parsed.is_valid():
        raise DistillError("a prompt has a stray $; write $$ for a dollar sign, $name for a placeholder")
    expected = set(parsed.get_identifiers())
    if expected != set(values):
        odd = ", ".join(f"${name}" for name in sorted(expected ^ set(values)))
        raise DistillError(f"a prompt and its values do not match: {odd} is only in one of them")
    return parsed.substitute(values)
