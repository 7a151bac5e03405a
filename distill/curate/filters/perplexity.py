"""Drops answers with too high or too low perplexity under the student's base model."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.curate.filters import AskingOptions
from distill.curate.filters.likelihoods import ROLE, prompted, require_order, spoken, total_of, within
from distill.types import Completion, Failure, Flow, Session, Verdict


class Perplexity:
    """Perplexity of a session's answers after their prompts, by the byte: exp(negative log-likelihood / bytes).

    By the byte, so that the bounds hold for models with other tokenizers; 1 is certain, 256 is noise, and the embedded
    model finds nine in ten of Alpaca's answers between 1.2 and 2.1 (median 1.4). The student's model is asked as it
    comes, unpruned, in the student's template, without the end token. A session without an answer and one beyond the
    model's context are kept and labelled.
    """

    class Options(AskingOptions):
        """Options of `filter: perplexity`; a bound left out does not apply."""

        min: Annotated[float, Field(ge=1)] | None = None
        """Least perplexity a byte: below it there is nothing to learn, or a text goes round in circles."""
        max: Annotated[float, Field(ge=1)] | None = None
        """Greatest perplexity a byte: above it are noise, garbled text and languages that the model cannot read."""

        @model_validator(mode="after")
        def _ordered(self) -> Perplexity.Options:
            require_order(self.min, self.max)
            return self

    scope: Literal["row"] = "row"
    role = ROLE

    def __init__(self, options: Options) -> None:
        self.options = options
        self.every_row = options.every_row

    def measure(self, session: Session) -> Flow[float | str | None]:
        """The perplexity; or a word on why there is none; `None` where the model failed."""
        turns = spoken(session)
        if not turns:
            return "no_answer"
        answers: tuple[Completion | Failure, ...] = yield tuple(prompted(session, turn) for turn in turns)
        if isinstance(total := total_of(answers), float):
            size = sum(len(session.messages[turn].content.strip().encode()) for turn in turns)
            return math.exp(-total / size)
        return total

    def decide(self, value: float | str) -> Verdict:
        """Keep what is within both bounds."""
        return within("perplexity", value, self.options.min, self.options.max, above="too_strange")
