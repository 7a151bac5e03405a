"""Texts compared and counted without their white space, for `mask_check`."""

from __future__ import annotations

import re


def quoted(text: str) -> str:
    """A text in quotes for a message, in at most 60 characters."""
    quoted = ascii(text) if not text.isprintable() else f"'{text}'"
    return quoted if len(quoted) <= 60 else quoted[:57] + "…'"


def bare(text: str) -> str:
    """The text without its white space."""
    return "".join(text.split())


def span(text: str, number: int) -> tuple[int, int]:
    """Byte offsets of the n-th character that is not white space, from 0; those of the text's edges beyond them."""
    if number < 0:
        return 0, 0
    for match in re.finditer(r"\S+", text):
        if number < len(match[0]):
            start = len(text[: match.start() + number].encode())
            return start, start + len(match[0][number].encode())
        number -= len(match[0])
    size = len(text.encode())
    return size, size


def places(framed: str, marks: re.Pattern[str]) -> dict[int, int]:
    """By the number of each mark, the count of characters before it that are not white space."""
    counts: dict[int, int] = {}
    count = position = 0
    for mark in marks.finditer(framed):
        count += len(bare(framed[position : mark.start()]))
        position = mark.end()
        counts.setdefault(ord(mark[0]) % 0x8000, count)
    return counts
