"""Drops answers that do not agree with their row's reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from distill import recipe
from distill.curate.filters import answers_of
from distill.text import references
from distill.types import Session, Verdict


class Verified:
    """Keeps sessions whose last answer is right by the row's `reference`, as the metric `accuracy` counts it.

    Reasons of dropped rows: `wrong`; `no_reference`; and `bad_reference`, one that its check cannot take. It runs after
    prompts were held out, so that the comparison is not on those alone to which the teacher knows the answer.
    """

    class Options(recipe.CheckOptions):
        """Options of `filter: verified`."""

        unreferenced: Literal["drop", "keep"] = "drop"
        """What becomes of rows without a reference, such as general conversations beside those of the job."""

    scope: Literal["set"] = "set"

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide_all(self, sessions: Sequence[Session]) -> list[Verdict]:
        """A verdict on each session by itself."""
        return [self._verdict(session) for session in sessions]

    def _verdict(self, session: Session) -> Verdict:
        if (reference := references.shown(session.meta)) is None:
            return Verdict(rule="verified", keep=self.options.unreferenced == "keep", reason="no_reference")
        check = self.options.default_check
        if (fault := references.fault(session.meta, check)) is not None:
            return Verdict(rule="verified", keep=False, reason="bad_reference", threshold=reference, note=fault)
        right, answer = references.read(session.meta, check), next(reversed(answers_of(session)), "")
        keep = right is not None and right.passes(answer)
        return Verdict(rule="verified", keep=keep, reason="ok" if keep else "wrong", threshold=reference)
