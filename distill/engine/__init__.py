"""The engine's results and the exceptions that end it early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distill.errors import BudgetStop, DistillError, EndpointError, Interrupted, StageIncomplete
from distill.types import Failure, Task, Usage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """Result of one flow."""

    id: str
    value: T | None
    """Its return value; `None` where it raised."""
    failures: tuple[Failure, ...] = ()
    """Every failure that was sent into the flow; last, with the reason `error`, the exception that it raised."""
    error: str | None = None
    """The exception in one line, where it raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthResult:
    """Result of a growth."""

    tasks: list[Task]
    """The admitted tasks, in order, never more than the target."""
    requests: int
    """Proposals admitted, with or without a task."""
    candidates: int
    """Proposed tasks, duplicates included."""
    failures: tuple[Failure, ...] = ()
    """Permanent failures that were sent into proposals."""
    errors: tuple[str, ...] = ()
    """One line per proposal that raised; such proposals count as admitted, without a task."""


@dataclass(slots=True)
class Tally:
    """Requests of one engine since it was made; for totals over several runs see `Journal.tokens`."""

    asked: int = 0
    """Requests sent to an endpoint, each counted once."""
    replayed: int = 0
    """Answers and permanent failures taken from the journal."""
    failed: int = 0
    """Requests sent that ended in a failure."""
    retried: int = 0
    """Sends beyond a request's first."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As reported, for answers bought by this engine."""
    usd: float | None = None
    """Spent by this engine, where there are prices; sends that may have been billed without an answer count in full."""
    wasted_usd: float = 0.0
    """The part of `usd` that brought no answer."""

    def count(self, usage: Usage | None) -> None:
        """Add an answer's tokens, where they were reported."""
        if usage is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens


class EngineStopped(DistillError):
    """The engine stopped early; carries the finished outcomes, so that the stage can write them."""

    outcomes: Sequence[Outcome[Any]] = ()
    """The finished flows of `Engine.run`, in input order."""
    growth: GrowthResult | None = None
    """What `Engine.grow` had admitted."""


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
