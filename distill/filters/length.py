"""Drops answers that are shorter or longer than wanted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill import recipe
from distill.filters import answers_of
from distill.text import words
from distill.types import Session, Verdict

Bound = Annotated[int, Field(ge=0)] | None


class Length:
    """Bounds on the length of an answer, inclusive; of several turns, on all of them together."""

    class Options(recipe.Options):
        """Options of `filter: length`; a bound left out does not apply."""

        min_words: Bound = None
        """Fewest words, as split at white space."""
        max_words: Bound = None
        """Most words."""
        min_chars: Bound = None
        """Fewest characters; for languages that write no spaces."""
        max_chars: Bound = None
        """Most characters."""

        @model_validator(mode="after")
        def _ordered(self) -> Length.Options:
            for least, most, unit in (
                (self.min_words, self.max_words, "words"),
                (self.min_chars, self.max_chars, "chars"),
            ):
                if least is not None and most is not None and least > most:
                    raise ValueError(f"min_{unit} {least} is above max_{unit} {most}; no answer could be kept")
            return self

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> tuple[int, int]:
        """Words and characters of the answer."""
        answer = "\n".join(answers_of(session))
        return len(words(answer)), len(answer)

    def decide(self, value: tuple[int, int]) -> Verdict:
        """Keep an answer within every bound; a verdict names the first that it is outside of, or its words."""
        chosen = self.options
        for unit, count, least, most in (
            ("words", value[0], chosen.min_words, chosen.max_words),
            ("chars", value[1], chosen.min_chars, chosen.max_chars),
        ):
            if least is not None and count < least:
                return _outside(f"too_few_{unit}", count, least)
            if most is not None and count > most:
                return _outside(f"too_many_{unit}", count, most)
        return Verdict(rule="length", keep=True, reason="ok", value=value[0])


def _outside(reason: str, count: int, bound: int) -> Verdict:
    return Verdict(rule="length", keep=False, reason=reason, value=count, threshold=bound)
