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
from distill.errors import RunFolderError

Row: TypeAlias = Mapping[str, Any]
"""A JSON object as another stage left it."""


def number(value: float | None) -> str | None:
    """A count with its thousands set apart; None stays None, which the page shows as a dash."""
    return None if value is None else f"{value:,.0f}"


def fixed(value: float | None, decimals: int, signed: bool = False) -> str | None:
    """A value with so many decimals and a true minus sign."""
    return None if value is None else f"{value:{'+' if signed else ''}z,.{decimals}f}".replace("-", "−")


def percent(share: float | None) -> str | None:
    """A share as whole percent."""
    return None if share is None else f"{fixed(100 * share, 0)}%"


def duration(seconds: float | None) -> str | None:
    """Seconds as in `core.console`; None stays None."""
    return None if seconds is None else console.duration(seconds)


def size(count: float | None) -> str | None:
    """Bytes in GB or MB (powers of ten)."""
    return None if count is None else f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def stream(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file; none where there is no file. Raises `DistillError` for what is no row."""
    return read_jsonl(path) if path.is_file() else iter(())


def rows(path: Path) -> list[dict[str, Any]]:
    """The same, all at once."""
    return list(stream(path))


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is not JSON ({error}); delete it and run its stage again") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: found {type(value).__name__}, expected a JSON object; run its stage again")
    return value


def plain_text(path: Path) -> str:
    """A file as text, whatever it holds; empty where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def finite(value: Any) -> float | None:
    """A number that can be drawn; JSON's NaN and Infinity are none."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class ShownInterval:
    """A mean with the ends of its interval, where there is one."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> list[float]:
        """The mean and the ends that there are."""
        return [end for end in (self.mean, self.low, self.high) if end is not None]


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


def interval_of(entry: Row | None, key: str = "mean") -> ShownInterval | None:
    """An interval as scores.json has it; None where its mean is no number that can be drawn."""
    mean = finite((entry or {}).get(key))
    return (
        ShownInterval(mean, finite(entry.get("low")), finite(entry.get("high"))) if entry and mean is not None else None
    )


def ticks(low: float, high: float, *, least: float = 1e-6) -> list[float]:
    """Round values, `least` or more apart (1, 2 or 5 times a power of ten), that enclose low and high; about five."""
    rough = max((high - low) / 5, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def shown(value: Any) -> str | None:
    """A value on one line, with three figures of a fraction."""
    if value is None or isinstance(value, str):
        return value
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
