"""Drops answers by their likelihood under the student's base model: perplexity, instruction-following difficulty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.curate.filters import AskingOptions
from distill.types import Completion, Failure, Flow, Message, Request, Session, Verdict

ROLE = "base"
NO_PROMPT = (Message("user", ""),)
"""The prompt of an answer without its instruction; every template can render it."""


def answer_places(session: Session) -> list[int]:
    """Positions of the non-empty answers among the messages."""
    return [
        place
        for place, message in enumerate(session.messages)
        if message.role == "assistant" and message.content.strip()
    ]


def likelihoods(session: Session, turns: Sequence[int], *, with_prompt: bool = True) -> list[Request]:
    """Requests for the likelihood of each turn after the messages before it, or after `NO_PROMPT`."""
    return [
        Request(
            role=ROLE,
            messages=session.messages[:turn] if with_prompt else NO_PROMPT,
            kind="likelihood",
            continuation=session.messages[turn].content.strip(),
        )
        for turn in turns
    ]


def total_of(answers: Sequence[Completion | Failure]) -> float | str | None:
    """Sum of the log-likelihoods in nats; `too_long` where one does not fit the context; `None` for other faults."""
    total = 0.0
    for answer in answers:
        if isinstance(answer, Failure):
            return "too_long" if answer.reason == "context_length" else None
        if answer.loglikelihood is None:
            return None
        total += answer.loglikelihood
    return total


class Bounds(AskingOptions):
    """Options of a filter that keeps values between two bounds; a bound of `None` does not apply."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}; no answer could be kept")
        return self


class LikelihoodFilter:
    """Base of the filters; each adds `Options`, `measure`, the rule's name, and the reason for values above `max`."""

    rule: str
    above: str
    scope: Literal["row"] = "row"
    role = ROLE

    def __init__(self, options: Bounds) -> None:
        self.options = options
        self.every_row = options.every_row

    def decide(self, value: float | str) -> Verdict:
        """Keep values within both bounds, and sessions without a value, labelled with the reason."""
        least, most = self.options.min, self.options.max
        if isinstance(value, str):
            return Verdict(rule=self.rule, keep=True, reason=value)
        if least is not None and value < least:
            return Verdict(rule=self.rule, keep=False, reason="too_easy", value=value, threshold=least)
        if most is not None and value > most:
            return Verdict(rule=self.rule, keep=False, reason=self.above, value=value, threshold=most)
        return Verdict(rule=self.rule, keep=True, reason="ok", value=value)


class Perplexity(LikelihoodFilter):
    """Perplexity of a session's answers after their prompts, per byte: exp(negative log-likelihood / bytes).

    Per byte, so that the bounds hold for any tokenizer; 1 is certainty, 256 is noise, and with the embedded model nine
    in ten of Alpaca's answers are between 1.2 and 2.1 (median 1.4). It is computed with the student's model before
    pruning, in the student's template, without the end token. A session without an answer, and one beyond the model's
    context, are kept and labelled.
    """

    class Options(Bounds):
        """Options of `filter: perplexity`; a bound left out does not apply."""

        min: Annotated[float, Field(ge=1)] | None = None
        """Least perplexity per byte; lower ones have nothing to teach, or repeat themselves."""
        max: Annotated[float, Field(ge=1)] | None = None
        """Greatest perplexity per byte; higher ones are noise, garbled text and languages unknown to the model."""

    rule = "perplexity"
    above = "too_strange"

    def measure(self, session: Session) -> Flow[float | str | None]:
        """The perplexity, or the reason why there is none; `None` where the model failed."""
        turns = answer_places(session)
        if not turns:
            return "no_answer"
        answers: tuple[Completion | Failure, ...] = yield tuple(likelihoods(session, turns))
        if isinstance(total := total_of(answers), float):
            size = sum(len(session.messages[turn].content.strip().encode()) for turn in turns)
            return math.exp(-total / size)
        return total


class Ifd(LikelihoodFilter):
    """Instruction-following difficulty: loss of the answer after its instruction / loss of the answer alone.

    Li et al., 2023 ("From Quantity to Quality", arXiv 2308.12032, section 2.2). Near 0 the instruction gives the
    answer away; at 1 it does not help; above 1 it misleads, and such rows are dropped by default, as in the paper. Both
    losses are means over the same tokens, so their quotient is that of the log-likelihoods. "Alone" means after an
    empty instruction in the student's template. The log-likelihoods of several turns are summed. A session without an
    answer, and one beyond the model's context, are kept and labelled.
    """

    class Options(Bounds):
        """Options of `filter: ifd`."""

        min: Annotated[float, Field(ge=0)] | None = None
        """Least difficulty; rows below it have little to teach."""
        max: Annotated[float, Field(ge=0)] | None = 1.0
        """Greatest difficulty; `null` keeps answers that the instruction makes less likely."""

    rule = "ifd"
    above = "misled"

    def measure(self, session: Session) -> Flow[float | str | None]:
        """The quotient, or the reason why there is none; `None` where the model failed."""
        turns = answer_places(session)
        if not turns:
            return "no_answer"
        requests = (*likelihoods(session, turns), *likelihoods(session, turns, with_prompt=False))
        answers: tuple[Completion | Failure, ...] = yield requests
        after, by_itself = total_of(answers[: len(turns)]), total_of(answers[len(turns) :])
        if not isinstance(after, float) or not isinstance(by_itself, float):
            return after if not isinstance(after, float) else by_itself
        return after / by_itself if by_itself < 0 else "no_answer"
