"""Labels or drops refusals, and answers in which the model speaks about itself."""

from __future__ import annotations

from typing import Literal

from distill import recipe
from distill.curate.filters import answers_of
from distill.text.refusals import refusing_phrase
from distill.types import Session, Verdict


class Refusal:
    """Refusals at the start of an answer, and a model's remarks about itself anywhere, in twelve languages.

    The patterns are our own: many for English; the most frequent phrases for Arabic, Bengali, Chinese, French, German,
    Hindi, Japanese, Portuguese, Russian, Spanish and Urdu. Sessions are labelled by default, because declining is
    sometimes right, and a student that never sees a refusal never declines.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: refusal`."""

        drop: bool = False
        """Drop such sessions; otherwise they are labelled."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> str | None:
        """The first such phrase, in lower case, or `None`."""
        return next((phrase for answer in answers_of(session) if (phrase := refusing_phrase(answer))), None)

    def decide(self, value: str | None) -> Verdict:
        """Label or drop an answer with such a phrase."""
        keep = value is None or not self.options.drop
        return Verdict(rule="refusal", keep=keep, reason="ok" if value is None else "refusal", value=value)
