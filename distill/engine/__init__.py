"""The engine's results and the exceptions that end it early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distill.errors import BudgetStop, DistillError, EndpointError, Interrupted, StageIncomplete
from distill.types import Failure, Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """Result of one flow."""

    id: str
    value: T | None
    """What it returned; `None` where it raised."""
    failures: tuple[Failure, ...] = ()
    """Every failure that was sent into it, and last, with the reason `error`, that it raised."""
    error: str | None = None
    """One line, where it raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthResult:
    """Result of a growth."""

    tasks: list[Task]
    """What was admitted, in order, never more than the target."""
    requests: int
    """Proposals admitted, with or without a task."""
    candidates: int
    """Tasks that they proposed, duplicates included."""
    failures: tuple[Failure, ...] = ()
    """Permanent failures that were sent into proposals."""
    errors: tuple[str, ...] = ()
    """One line per proposal that raised; it was admitted as empty."""


@dataclass(slots=True)
class Tally:
    """Requests of one engine since it was made; for totals over several runs see `Journal.tokens`."""

    asked: int = 0
    """Requests sent to an endpoint, each counted once."""
    replayed: int = 0
    """Answers and permanent failures taken from the journal."""
    failed: int = 0
    """Requests asked that ended in a failure."""
    retried: int = 0
    """Sends beyond a request's first."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As reported, of answers asked now."""
    usd: float | None = None
    """Spent now, where prices are given; what may have been billed without an answer counts in full."""
    wasted_usd: float = 0.0
    """Of it, what brought no answer."""


class EngineStopped(DistillError):
    """The engine stopped early; carries the finished outcomes, so that the stage can write them."""

    outcomes: Sequence[Outcome[Any]] = ()
    """Of `Engine.run`: the finished flows, in input order."""
    grown: GrowthResult | None = None
    """Of `Engine.grow`: as far as it came."""


class StoppedByUser(EngineStopped, Interrupted):
    """Ctrl-C."""


class StoppedByBudget(EngineStopped, BudgetStop):
    """The next request would exceed the spending cap."""


class StoppedByEndpoint(EngineStopped, EndpointError):
    """No request to an endpoint can succeed."""


class StoppedAtMiss(EngineStopped):
    """The journal lacks answers, and nothing may be sent."""


class StoppedShort(EngineStopped, StageIncomplete):
    """A growth cannot continue: a transient failure, or nothing new."""
