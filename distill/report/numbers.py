"""Number formatting, chart scales, and reading of other stages' JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from distill.core import console
from distill.core.jsonl import read_jsonl

Row: TypeAlias = Mapping[str, Any]
"""A JSON object written by another stage."""


def number(value: float | None) -> str | None:
    """A count with thousands separators; None stays None, which the page shows as a dash."""
    return None if value is None else f"{value:,.0f}"


def fixed(value: float | None, decimals: int, signed: bool = False) -> str | None:
    """A value with a number of decimals and a true minus sign."""
    return None if value is None else f"{value:{'+' if signed else ''}z,.{decimals}f}".replace("-", "−")


def percent(share: float | None) -> str | None:
    """A share as whole percent."""
    return None if share is None else f"{fixed(100 * share, 0)}%"


def duration(seconds: float | None) -> str | None:
    """Seconds as in `core.console`; None stays None."""
    return None if seconds is None else console.duration(seconds)


def money(usd: float | None) -> str | None:
    """USD as in `core.console`, without the unit; None stays None."""
    return None if usd is None else console.money(usd).removeprefix("USD ")


def size(count: float | None) -> str | None:
    """Bytes in GB or MB (powers of ten)."""
    return None if count is None else f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def stream(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file; none where there is no file. Raises `DistillError` for what is no row."""
    return read_jsonl(path) if path.is_file() else iter(())


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file as a list."""
    return list(stream(path))


def plain_text(path: Path) -> str:
    """A file as text, invalid UTF-8 replaced; empty where there is no file."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


@dataclass(frozen=True, slots=True)
class AxisScale:
    """Maps values to percent of a drawing's width (or height, where `flip` puts the greatest value first)."""

    low: float
    high: float
    flip: bool = False

    def at(self, value: float) -> float:
        """Percent, 0 to 100; the middle where the scale has no length."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(100 * (1 - share if self.flip else share), 2)


def ticks(low: float, high: float, *, least: float = 1e-6) -> list[float]:
    """About five round values that enclose low and high, spaced 1, 2 or 5 times a power of ten, at least `least`."""
    rough = max((high - low) / 5, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def as_text(value: Any) -> str | None:
    """A value on one line; a float has three significant figures."""
    if value is None or isinstance(value, str):
        return value
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
