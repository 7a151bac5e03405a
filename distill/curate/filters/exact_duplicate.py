"""Drops sessions whose text repeats an earlier one, ignoring case and white space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from distill import recipe
from distill.curate.filters import Compared, compared_text
from distill.text.tokens import normalise
from distill.types import Session, Verdict


class ExactDuplicate:
    """Keeps the first of equal sessions, in task order."""

    class Options(recipe.BaseOptions):
        """Options of `filter: exact_duplicate`."""

        on: Compared = "prompt"

    scope: Literal["set"] = "set"

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide_all(self, sessions: Sequence[Session]) -> list[Verdict]:
        """A dropped session's neighbour is the first equal one."""
        first: dict[str, str] = {}
        verdicts = []
        for session in sessions:
            text = normalise(compared_text(session, self.options.on))
            neighbour = first.get(text)
            first.setdefault(text, session.id)
            reason = "ok" if neighbour is None else "duplicate"
            verdicts.append(Verdict(rule="exact_duplicate", keep=neighbour is None, reason=reason, neighbour=neighbour))
        return verdicts
