"""The one rule by which values that JSON lacks become JSON: those of tables, of Python, and of lenient JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from math import isfinite
from typing import Any


def storable(value: Any) -> Any:
    """A value that JSON in UTF-8 can hold, by `CELLS`; nothing is raised, and nothing but its type is lost.

    | found | becomes |
    |---|---|
    | NaN, NaT, infinities, numbers over the range of a double (`1e999`) | null |
    | dates, times | text by ISO 8601 |
    | durations | number of seconds |
    | decimals | the same number, or text where a double would round it |
    | bytes | text by UTF-8, else by base64 |
    | half a surrogate pair | U+FFFD |
    | arrays, tuples, sets | list |
    | keys of objects, and all other values | text |
    """
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, int):
        return value
    if (rule := _rule(value.__class__)) is not None:
        return rule(value)
    plain = value.tolist() if hasattr(value, "tolist") else value  # of NumPy
    return storable(str(value) if plain is value else plain)


@cache
def _rule(kind: type[Any]) -> Callable[[Any], Any] | None:
    return next((rule for kinds, rule in CELLS.items() if issubclass(kind, kinds)), None)


def _text(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _decimal(value: Decimal) -> int | float | str | None:
    if not value.is_finite():
        return None
    if value == value.to_integral_value():
        return int(value) if value.adjusted() < MOST_DIGITS else str(value)
    return float(value) if Decimal(repr(float(value))) == value else str(value)


def _time(value: date | time) -> str | None:
    text = value.isoformat()
    return text if text != "NaT" else None  # of pandas, a datetime


def _bytes(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


MOST_DIGITS = 100
"""Digits of a decimal that becomes a whole number."""

CELLS: Mapping[type | tuple[type, ...], Callable[[Any], Any]] = {
    float: lambda value: float(value) if isfinite(value) else None,
    Mapping: lambda value: {str(storable(key)): storable(item) for key, item in value.items()},
    (list, tuple, set, frozenset): lambda value: [storable(item) for item in value],
    (datetime, date, time): _time,
    timedelta: lambda value: value.total_seconds(),
    Decimal: _decimal,
    (bytes, bytearray, memoryview): lambda value: _bytes(bytes(value)),
}
"""By type, the JSON of a value that is neither text, whole number, truth value nor null."""
