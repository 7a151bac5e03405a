"""Drops sessions with an empty answer."""

from __future__ import annotations

from typing import Literal

from distill import recipe
from distill.curate.filters import answers_of
from distill.types import Session, Verdict

_OTHER = bytes(code for code in range(256) if not (code < 128 and chr(code).isalnum()))


class Empty:
    """An answer without a letter or digit of any script is empty: only white space or punctuation."""

    class Options(recipe.BaseOptions):
        """`filter: empty` has no options."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> int:
        """Letters and digits in the answer with the fewest; 0 for a session without an answer."""
        return min(map(_letters_and_digits, answers_of(session)), default=0)

    def decide(self, value: int) -> Verdict:
        """Keep sessions whose answers all have at least one."""
        return Verdict(rule="empty", keep=value > 0, reason="ok" if value else "empty", value=value, threshold=1)


def _letters_and_digits(text: str) -> int:
    if text.isascii():
        return len(text.encode().translate(None, _OTHER))
    return sum(map(str.isalnum, text))
