"""Labels or drops answers that were cut at the teacher's `max_tokens`, or that end within a sentence."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from distill import recipe
from distill.curate.filters import answers_of
from distill.types import Session, Verdict

Cut: TypeAlias = Literal["truncated", "unfinished", ""]

LEAST_WORDS = 10
"""Fewest words of an `unfinished` answer; a shorter one may be the single word that the task asks for."""
LONGEST_END = 16
"""Characters at the end of an answer that the pattern can match."""
_UNFINISHED = re.compile(
    r"(?:[,:(\[{]|\b(?:the|an|and|or|of|to|with|for|from|at|by|as|is|are|was|were|that|which|their|his|its|your|my|our|"
    r"if|when|because|but|than|into|will|would|could|should|has|have|had|be|been|these|those|very|between|including))\Z"
)


class Truncated:
    """Truncated answers are usable text without an end: training gives them no end token, so they may be kept.

    Imported data seldom say how an answer ended. One of ten words or more that ends with a comma, a colon, an opening
    bracket or a word that needs a successor (`the`, `of` …) is `unfinished`: all 4 such among 1,913 answers were cut.
    Most answers cut at a random character end otherwise and are not detected.
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
        last = (answers_of(session) or [""])[-1].rstrip()
        is_unfinished = _UNFINISHED.search(last[-LONGEST_END:]) and len(last.split()) >= LEAST_WORDS
        return "unfinished" if is_unfinished else ""

    def decide(self, value: Cut) -> Verdict:
        """Label or drop a cut answer."""
        keep = not (value and self.options.drop)
        return Verdict(rule="truncated", keep=keep, reason=value or "ok", value=str(bool(value)).lower())
