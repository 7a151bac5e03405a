"""Drops answers with too high or too low perplexity under the student's base model."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from distill.curate.filters.likelihoods import Bounds, LikelihoodFilter, spoken, total_of, with_prompt
from distill.types import Completion, Failure, Flow, Session


class Perplexity(LikelihoodFilter):
    """Perplexity of a session's answers after their prompts, by the byte: exp(negative log-likelihood / bytes).

    By the byte, so that the bounds hold for models with other tokenizers; 1 is certain, 256 is noise, and the embedded
    model finds nine in ten of Alpaca's answers between 1.2 and 2.1 (median 1.4). The student's model is asked as it
    comes, unpruned, in the student's template, without the end token. A session without an answer and one beyond the
    model's context are kept and labelled.
    """

    class Options(Bounds):
        """Options of `filter: perplexity`; a bound left out does not apply."""

        min: Annotated[float, Field(ge=1)] | None = None
        """Least perplexity a byte: below it there is nothing to learn, or a text goes round in circles."""
        max: Annotated[float, Field(ge=1)] | None = None
        """Greatest perplexity a byte: above it are noise, garbled text and languages that the model cannot read."""

    rule = "perplexity"
    above = "too_strange"

    def measure(self, session: Session) -> Flow[float | str | None]:
        """The perplexity; or a word on why there is none; `None` where the model failed."""
        turns = spoken(session)
        if not turns:
            return "no_answer"
        answers: tuple[Completion | Failure, ...] = yield tuple(with_prompt(session, turn) for turn in turns)
        if isinstance(total := total_of(answers), float):
            size = sum(len(session.messages[turn].content.strip().encode()) for turn in turns)
            return math.exp(-total / size)
        return total
