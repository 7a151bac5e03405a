"""Loads the shipped prompt files and fills in their placeholders."""

from __future__ import annotations

from string import Template

from distill import assets
from distill.errors import DistillError


def load(name: str) -> str:
    """The text of `prompts/<name>`, such as `strategies/self_instruct.txt`, without white space at its end."""
    return assets.find(f"prompts/{name}").read_text(encoding="utf-8").rstrip()


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
