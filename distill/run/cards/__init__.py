"""Renders the cards' Markdown templates: every value is shown as text, never as markup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MAX_TEXT = 300
"""The most characters of a foreign text."""
ADDRESSES = ("base_url", "url", "api_key_env", "headers_env")
"""Keys of a recipe or a record that hold addresses."""
_MARKUP = re.compile(r"([\\`*_\[\]<>|#!~&$])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")


def render(template: str, head: Mapping[str, Any], **values: Any) -> str:
    """A README.md: the YAML `head`, and a template of this folder with its `values`."""
    front = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)
    text = _environment().get_template(template).render(**values).strip()
    return f"---\n{front}---\n\n{text}\n"


def public(value: Any) -> Any:
    """A recipe's or a record's values without addresses; a path is its last part, which says nothing of the machine.

    A path begins with `/` or `~/` and has a folder; `/no_think` is a text.
    """
    if isinstance(value, dict):
        return {public(key): public(item) for key, item in value.items() if key not in ADDRESSES}
    if isinstance(value, list):
        return [public(item) for item in value]
    is_path = isinstance(value, str) and value.startswith(("/", "~/", "./", "../")) and value.count("/") > 1
    return Path(value).name if is_path and "\n" not in value else value


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(plain(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "basename": lambda path: Path(str(path)).name,
        "decimal": lambda value: f"{value:.3f}" if isinstance(value, (int, float)) else "—",
        "fenced": fence,
        "number": lambda value: f"{value:,}" if isinstance(value, (int, float)) else "—",
        "plain": lambda value, longest: Markup(plain(value, longest=longest)),
        "share": lambda value, decimals=0: f"{value:.{decimals}%}" if isinstance(value, (int, float)) else "—",
    }
    return environment


def plain(value: Any, *, longest: int = MAX_TEXT) -> str:
    """A foreign text as one line of Markdown, with all markup escaped."""
    text = " ".join(_CONTROL.sub(" ", str(value)).split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return _MARKUP.sub(r"\\\1", text).replace("://", ":\u200b//").replace("@", "@\u200b")


def fence(text: str, language: str) -> Markup:
    """A code block whose fence is longer than any in the text."""
    from markupsafe import Markup

    lines = [_CONTROL.sub(" ", line) for line in text.splitlines()]
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup("\n".join([f"{fence}{language}", *lines, fence]))
