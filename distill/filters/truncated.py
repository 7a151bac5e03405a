"""Labels, or drops, answers that were cut at the teacher's `max_tokens`."""

from __future__ import annotations

from typing import Literal

from distill import recipe
from distill.types import Session, Verdict


class Truncated:
    """Cut answers are good text without an end: training gives them no end token, so that they may stay."""

    class Options(recipe.Options):
        """Options of `filter: truncated`."""

        drop: bool = False
        """Drop them; else they are labelled."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> bool:
        """Whether the answer was cut, as collected."""
        return bool(session.meta.get("truncated", False))

    def decide(self, value: bool) -> Verdict:
        """Label or drop what was cut."""
        keep = not (value and self.options.drop)
        return Verdict(rule="truncated", keep=keep, reason="truncated" if value else "ok", value=str(value).lower())
