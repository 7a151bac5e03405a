"""Replaces lone surrogates: JSON can name half of a pair, but no file in UTF-8 can hold it."""

from __future__ import annotations

import json
import re
from typing import Any

_LONE = re.compile("[\ud800-\udfff]")
_NAMED = re.compile(r"\\u[dD][89a-fA-F]")


def mended(value: Any) -> Any:
    """A JSON value with U+FFFD in place of every lone surrogate, keys included; adjacent halves make a character."""
    if isinstance(value, str):
        is_whole = value.isascii() or _LONE.search(value) is None
        return value if is_whole else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [mended(item) for item in value]
    if isinstance(value, dict):
        return {mended(key): mended(item) for key, item in value.items()}
    return value


def parsed(text: str) -> Any:
    """The JSON value of a text, mended. Raises `ValueError`."""
    value = json.loads(text)
    return mended(value) if "\\u" in text and _NAMED.search(text) else value
