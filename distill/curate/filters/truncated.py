"""Labels or drops answers that were cut at the teacher's `max_tokens`, or that end within a sentence."""

from __future__ import annotations

from typing import Literal, TypeAlias

from distill import recipe
from distill.curate.filters import answers_of
from distill.text.unfinished import is_unfinished
from distill.types import Session, Verdict

Cut: TypeAlias = Literal["truncated", "unfinished", ""]


class Truncated:
    """Truncated answers are usable text without an end: training gives them no end token, so they may be kept.

    Imported data seldom say how an answer ended. One of ten words or more that ends with a comma, a colon, an opening
    bracket or a word that needs a successor (`the`, `of` …, in twelve languages) is `unfinished`: all 4 such among
    1,913 English answers were cut. Most answers cut at a random character end otherwise and are not detected.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: truncated`."""

        drop: bool = False
        """Drop such sessions; otherwise they are labelled."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> Cut:
        """Whether the last answer is `truncated`, as collected, `unfinished`, by its last word, or neither."""
        if session.meta.get("truncated", False):
            return "truncated"
        return "unfinished" if is_unfinished((answers_of(session) or [""])[-1]) else ""

    def decide(self, value: Cut) -> Verdict:
        """Label or drop a cut answer."""
        keep = not (value and self.options.drop)
        return Verdict(rule="truncated", keep=keep, reason=value or "ok", value=str(bool(value)).lower())
