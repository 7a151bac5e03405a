"""Packs per-token NLL of the teacher's answers into bytes for the page's viewer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any

from distill.report.numbers import Row
from distill.run.scores import finite
from distill.text.tokens import visible

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""Digits for a token's width and for its √nats in steps of 1/14: exact to 0.07 at 1 nat, up to 20 nats."""
STEPS = 14
MOST = len(ALPHABET) - 1
SHADED = ("base", "student")
MAX_BYTES = 200_000
"""Limit of all tokens' bytes in the page, at three digits per token: 260 answers of 250 tokens."""


def bytes_of(answers: Sequence[Row]) -> int:
    """Approximate bytes of all tokens in the page."""
    surprises = (row.get("surprise") for row in answers)
    widths = (each.get("widths") for each in surprises if isinstance(each, dict))
    return min(MAX_BYTES, sum((1 + len(SHADED)) * len(each) for each in widths if isinstance(each, list)))


def select(ranked: Sequence[Row], limit: int) -> tuple[dict[str, dict[str, str]], int]:
    """Packed tokens by prompt id as far as they fit into the page, and the number of prompts that have any.

    `ranked`: the worst first. Where not all fit, the worst and the best alternate until `MAX_BYTES` are full. `limit`:
    characters shown of an answer.
    """
    rows_with_tokens = [(str(row.get("id")), info) for row in ranked if (info := pack(row, limit)) is not None]
    selection: dict[str, dict[str, str]] = {}
    room = MAX_BYTES
    for name, info in _ends_first(rows_with_tokens):
        room -= sum(map(len, info.values()))
        if room < 0:
            break
        selection[name] = info
    return selection, len(rows_with_tokens)


def _ends_first(rows: Sequence[tuple[str, dict[str, str]]]) -> Iterator[tuple[str, dict[str, str]]]:
    half = (len(rows) + 1) // 2
    turns = chain.from_iterable(zip_longest(rows[:half], rows[: half - 1 : -1]))
    return (one for one in turns if one is not None)


def pack(row: Row, limit: int) -> dict[str, str] | None:
    """`widths` in UTF-16 units of the shown text, and each model's nats; None where they do not match the text."""
    surprise, text = row.get("surprise"), ((row.get("answers") or {}).get("teacher") or {}).get("text")
    if not isinstance(surprise, dict) or not isinstance(text, str):
        return None
    widths = surprise.get("widths")
    if not isinstance(widths, list) or not all(isinstance(width, int) and width > 0 for width in widths):
        return None
    pieces = list(_pieces(text[:limit], widths))
    text_of_pieces = "".join(pieces)
    nats = {model: _nats((surprise.get("nats") or {}).get(model), len(widths)) for model in SHADED}
    if text_of_pieces != visible(text[:limit]) or not any(nats.values()):
        return None
    levels = {model: "".join(map(_level, each[: len(pieces)])) for model, each in nats.items() if each}
    return {"widths": "".join(_width(piece) for piece in pieces), **levels}


def _pieces(text: str, widths: Sequence[int]) -> Iterator[str]:
    """The tokens as shown, to the end of the text."""
    start = 0
    for width in widths:
        if start >= len(text):
            return
        yield visible(text[start : start + width])
        start += width


def _nats(value: Any, count: int) -> list[float]:
    numbers = [number for each in value if (number := finite(each)) is not None] if isinstance(value, list) else []
    return numbers if len(numbers) == count else []


def _level(nats: float) -> str:
    return ALPHABET[min(MOST, round(math.sqrt(max(0.0, nats)) * STEPS))]


def _width(piece: str) -> str:
    """The digits of a token's width: their sum, as `_` (63) is followed by a further digit."""
    more, rest = divmod(len(piece.encode("utf-16-le")) // 2, MOST)
    return ALPHABET[MOST] * more + ALPHABET[rest]
