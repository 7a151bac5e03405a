"""Reads the numbers that endpoints report, each within bounds: what lies outside them is treated as not reported."""

from __future__ import annotations

from typing import Any

MOST_TOKENS = 10_000_000
"""More than any context holds; a larger bound or count is not believed."""


def number_of(value: Any, *, least: float = 0.0, most: float) -> float | None:
    """A JSON number, or the text of one as in headers, from `least` to `most`; `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if least <= number <= most else None


def count_of(value: Any, *, least: int = 0, most: int = MOST_TOKENS) -> int | None:
    """A whole number from `least` to `most`; `None` for anything else."""
    number = number_of(value, least=least, most=most)
    return int(number) if number is not None and number.is_integer() else None
