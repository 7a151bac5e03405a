"""Holds an answer against the one that its task brings: by number, by text, or by a pattern that may be anybody's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeAlias

import re2

from distill.strategies.finals import LONGEST_LOOKED_AT, final_answer, same_number
from distill.text import normalise

Checking: TypeAlias = Literal["numeric", "exact", "contains", "regex"]

LONGEST_PATTERN = 200
"""Characters of a regular expression that a task may bring."""
MOST_BYTES = 1 << 18
"""Of a compiled pattern; with them, one that makes RE2 work hardest takes a fifth of a second on 10,000 characters."""


def _exactly(text: str, reference: str) -> bool:
    return normalise(final_answer(text)) == normalise(final_answer(reference))


def _contains(text: str, reference: str) -> bool:
    return normalise(reference) in normalise(text)


def _matches(text: str, reference: str) -> bool:
    return _compiled(reference).search(_utf8(text[-LONGEST_LOOKED_AT:])) is not None


def pattern_fault(pattern: str) -> str | None:
    """Why a pattern is not taken."""
    if len(pattern) > LONGEST_PATTERN:
        return f"meta.answer is a pattern of {len(pattern)} characters, at most {LONGEST_PATTERN} are taken"
    try:
        _compiled(pattern)
    except re2.error as error:
        told = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else error
        return f"meta.answer is no regular expression of RE2 ({told}); it has no look-arounds and no back-references"
    return None


@cache
def _options() -> Any:
    options = re2.Options()
    options.max_mem = MOST_BYTES
    options.log_errors = False
    return options


def _compiled(pattern: str) -> Any:
    """RE2 takes time in proportion to the text, whatever the pattern. Raises `re2.error`."""
    return re2.compile(_utf8(pattern), _options())


def _utf8(text: str) -> bytes:
    """Bytes, for RE2 knows no lone surrogates."""
    return text.encode(errors="replace")


CHECKS: Mapping[Checking, Callable[[str, str], bool]] = {
    "numeric": same_number,
    "exact": _exactly,
    "contains": _contains,
    "regex": _matches,
}
