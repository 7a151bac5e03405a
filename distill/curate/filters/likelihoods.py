"""Base of the filters that request likelihoods from the student's base model, and their requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator

from distill.curate.filters import AskingOptions
from distill.types import Completion, Failure, Message, Request, Session, Verdict

ROLE = "base"
NO_PROMPT = (Message("user", ""),)
"""An answer's frame without an instruction; every template can render it."""


def spoken(session: Session) -> list[int]:
    """The turns in which the teacher said something."""
    return [
        place
        for place, message in enumerate(session.messages)
        if message.role == "assistant" and message.content.strip()
    ]


def with_prompt(session: Session, turn: int) -> Request:
    """How probable the turn is after all that was said before it."""
    return _likelihood_request(session.messages[:turn], session.messages[turn].content)


def without_prompt(session: Session, turn: int) -> Request:
    """How probable the turn is after no instruction at all."""
    return _likelihood_request(NO_PROMPT, session.messages[turn].content)


def _likelihood_request(messages: tuple[Message, ...], text: str) -> Request:
    return Request(role=ROLE, messages=messages, kind="likelihood", continuation=text.strip())


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
    """Options of a filter that keeps values within two bounds; a bound that is `None` does not apply."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}; no answer could be kept")
        return self


class LikelihoodFilter:
    """Base of the filters; each adds `Options`, `measure`, and the names of the rule and of what is above its bound."""

    rule: str
    above: str
    scope: Literal["row"] = "row"
    role = ROLE

    def __init__(self, options: Bounds) -> None:
        self.options = options
        self.every_row = options.every_row

    def decide(self, value: float | str) -> Verdict:
        """Keep what is within both bounds, and what has no value, with the reason for that."""
        least, most = self.options.min, self.options.max
        if isinstance(value, str):
            return Verdict(rule=self.rule, keep=True, reason=value)
        if least is not None and value < least:
            return Verdict(rule=self.rule, keep=False, reason="too_easy", value=value, threshold=least)
        if most is not None and value > most:
            return Verdict(rule=self.rule, keep=False, reason=self.above, value=value, threshold=most)
        return Verdict(rule=self.rule, keep=True, reason="ok", value=value)
