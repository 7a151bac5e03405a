"""Drops sessions by the labels that collect gave them."""

from __future__ import annotations

from typing import Literal

from distill import recipe
from distill.types import Session, Verdict


class Label:
    """Collect keeps an answer that looks odd, and labels it; this rule drops it.

    `finish_unknown`: the endpoint did not say in a known word how the answer ended (`meta.finish`). `other_model`: it
    answered as another model than was asked (`meta.model`). `same_answer`: it gave this text to five prompts or more.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: label`."""

        labels: tuple[str, ...] = ("finish_unknown", "other_model", "same_answer")
        """Labels that drop a session, these or a strategy's own, such as `unjudged` and `check_failed`."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> tuple[str, ...]:
        """The session's labels."""
        return tuple(map(str, session.meta.get("labels") or ()))

    def decide(self, value: tuple[str, ...]) -> Verdict:
        """Drop a session that has one of the labels."""
        reason = next((label for label in self.options.labels if label in value), None)
        return Verdict(rule="label", keep=reason is None, reason=reason or "ok", value=reason)
