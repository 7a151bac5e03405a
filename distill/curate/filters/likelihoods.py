"""Helpers for filters that request likelihoods under the student's base model."""

from __future__ import annotations

from collections.abc import Sequence

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


def prompted(session: Session, turn: int) -> Request:
    """How probable the turn is after all that was said before it."""
    return _likelihood_request(session.messages[:turn], session.messages[turn].content)


def alone(session: Session, turn: int) -> Request:
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


def require_order(least: float | None, most: float | None) -> None:
    """Raises `ValueError` where nothing can be within both bounds; `None` is no bound."""
    if least is not None and most is not None and least > most:
        raise ValueError(f"min {least:g} is above max {most:g}; no answer could be kept")


def within(rule: str, value: float | str, least: float | None, most: float | None, *, above: str) -> Verdict:
    """Keep what is within both bounds: `too_easy` is below, and `above` the reason for what is above.

    What has no value comes with a word on why, and is kept with that as its reason.
    """
    if isinstance(value, str):
        return Verdict(rule=rule, keep=True, reason=value)
    if least is not None and value < least:
        return Verdict(rule=rule, keep=False, reason="too_easy", value=value, threshold=least)
    if most is not None and value > most:
        return Verdict(rule=rule, keep=False, reason=above, value=value, threshold=most)
    return Verdict(rule=rule, keep=True, reason="ok", value=value)
