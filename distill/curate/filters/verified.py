"""Drops answers that do not agree with their row's reference."""

from __future__ import annotations

from typing import Literal

from distill import recipe
from distill.curate.filters import answers_of
from distill.text import references
from distill.types import Session, Verdict


class Verified:
    """Keeps sessions whose last answer is right by the row's `reference`, as the metric `accuracy` counts it.

    Reasons of dropped rows: `wrong`; `no_reference`; and `bad_reference`, one that its check cannot take.
    """

    class Options(recipe.CheckOptions):
        """Options of `filter: verified`."""

        unreferenced: Literal["drop", "keep"] = "drop"
        """What becomes of rows without a reference, such as general conversations beside those of the job."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> tuple[str, str, str]:
        """The reason, `ok` for a right answer; the reference; and why it cannot be checked."""
        if (reference := references.shown(session.meta)) is None:
            return "no_reference", "", ""
        check = self.options.default_check
        if (fault := references.fault(session.meta, check)) is not None:
            return "bad_reference", reference, fault
        answer = next(reversed(answers_of(session)), "")
        right = references.read(session.meta, check)
        return "ok" if right is not None and right.passes(answer) else "wrong", reference, ""

    def decide(self, value: tuple[str, str, str]) -> Verdict:
        """Keep a right answer."""
        reason, reference, fault = value
        keep = reason == "ok" or (reason == "no_reference" and self.options.unreferenced == "keep")
        return Verdict(rule="verified", keep=keep, reason=reason, threshold=reference or None, note=fault or None)
