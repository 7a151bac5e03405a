"""State of one running flow, and replay of flows from the journal alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from distill.engine import Outcome
from distill.engine.journal.keys import Question
from distill.engine.journal.store import Journal
from distill.engine.providers import one_line
from distill.types import Answer, Endpoint, Failure, Flow, Growth, Request

T = TypeVar("T")

MOST_PROPOSALS = 100_000
"""A growth whose journal holds as many is not looked at further."""

Flows: TypeAlias = Sequence[tuple[str, Callable[[], Flow[T]]]]
"""By their ids, how each begins."""
Choose: TypeAlias = Callable[[str, str], str]
"""From a flow's id and a request's role to the name of the model that answers it."""


def by_role(flow: str, role: str) -> str:
    """The model that is called like the role."""
    return role


class FlowState(Generic[T]):
    """One running flow: its pending requests, or its outcome."""

    def __init__(self, name: str, make: Callable[[], Flow[T]], choose: Choose) -> None:
        self.name = name
        self.usd = 0.0
        """What its answers cost, bought now or before."""
        self._choose = choose
        self.asked: tuple[Request, ...] = ()
        self.outcome: Outcome[T] | None = None
        self._alone = False
        self._failures: list[Failure] = []
        self._flow: Flow[T] | None = None
        self._step(lambda: next(self._begin(make)))

    def _begin(self, make: Callable[[], Flow[T]]) -> Flow[T]:
        self._flow = make()
        return self._flow

    @property
    def names(self) -> tuple[str, ...]:
        """Which models are asked."""
        return tuple([self._choose(self.name, request.role) for request in self.asked])

    def send(self, answers: tuple[Answer, ...]) -> None:
        """Give the flow what it asked for, and let it go on to its next request or its end."""
        flow = self._flow
        assert flow is not None
        self._failures += [answer for answer in answers if isinstance(answer, Failure)]
        self._step(lambda: flow.send(answers[0] if self._alone else answers))

    def _step(self, advance: Callable[[], Any]) -> None:
        try:
            asked = advance()
            self._alone = isinstance(asked, Request)
            self.asked = (asked,) if isinstance(asked, Request) else _checked(asked)
        except StopIteration as end:
            self.outcome = Outcome(self.name, end.value, tuple(self._failures))
        except Exception as error:  # noqa: BLE001 - a part that raises costs its own row, and no answer
            line = one_line(f"{type(error).__name__}: {error}")
            failure = Failure(key="", reason="error", detail=line, transient=False)
            self.outcome = Outcome(self.name, None, (*self._failures, failure), line)
            self.close()

    def close(self) -> None:
        """End a flow that cannot go on; what it does on its way out is its own."""
        if self._flow is not None:
            with suppress(Exception):
                self._flow.close()


def _checked(asked: Any) -> tuple[Request, ...]:
    if isinstance(asked, tuple) and all(isinstance(request, Request) for request in asked):
        return asked
    raise TypeError(f"the flow yielded a {type(asked).__name__}, expected a Request or a tuple of them")


class Runs(Protocol):
    """Interface of what runs flows to completion: an engine, or a replacement."""

    def run(self, flows: Flows[T], *, choose: Choose = by_role) -> list[Outcome[T]]:
        """One outcome a flow, in their order."""


class Replay:
    """Replacement for an engine that sends nothing; records each flow's first question that the journal lacks.

    Such a flow ends with a failure, and without a value.
    """

    def __init__(self, journal: Journal, endpoints: Mapping[str, Endpoint]) -> None:
        self.misses: list[tuple[str, Question]] = []
        """By the flows' ids, in their order."""
        self._journal = journal
        self._endpoints = endpoints

    def run(self, flows: Flows[T], *, choose: Choose = by_role) -> list[Outcome[T]]:
        """As of an engine."""
        return [self._outcome(FlowState(name, make, choose)) for name, make in flows]

    def _outcome(self, steps: FlowState[T]) -> Outcome[T]:
        if (miss := _replay(steps, self._journal, self._endpoints)) is None and steps.outcome is not None:
            return steps.outcome
        steps.close()
        if miss is not None:
            self.misses.append((steps.name, miss))
        lost = Failure(key=miss.key if miss else "", reason="not_journalled", detail="", transient=True)
        return Outcome(steps.name, None, (lost,))


def first_misses(
    flows: Sequence[tuple[str, Callable[[], Flow[Any]]]],
    journal: Journal,
    endpoints: Mapping[str, Endpoint],
    *,
    choose: Choose = by_role,
) -> Iterator[tuple[str, Question]]:
    """Each flow that the journal cannot finish, and the first question that it has no answer to; asks nothing."""
    for name, make in flows:
        steps = FlowState(name, make, choose)
        if (miss := _replay(steps, journal, endpoints)) is not None:
            yield name, miss
        steps.close()


def first_miss_of_growth(
    growth: Growth, target: int, journal: Journal, endpoints: Mapping[str, Endpoint]
) -> tuple[str, Question] | None:
    """The first proposal that the journal cannot finish; `None` where it can grow to the target."""
    begun: dict[int, FlowState[Any]] = {}
    admitted = k = 0
    while admitted < target and k < MOST_PROPOSALS:
        for number in range(k, k + max(1, growth.window)):
            if number not in begun:
                begun[number] = FlowState(str(number), partial(growth.propose, number), by_role)
        steps = begun.pop(k)
        if (miss := _replay(steps, journal, endpoints)) is not None:
            return f"proposal {k}", miss
        admitted += len(growth.admit(k, (steps.outcome.value if steps.outcome else None) or []))
        k += 1
    return None


def _replay(steps: FlowState[Any], journal: Journal, endpoints: Mapping[str, Endpoint]) -> Question | None:
    """Take a flow as far as the journal goes; the question at which it stops."""
    while steps.outcome is None:
        questions = [
            Question.of(request, endpoints[name]) for request, name in zip(steps.asked, steps.names, strict=True)
        ]
        found = [journal.get(question.key) for question in questions]
        for question, answer in zip(questions, found, strict=True):
            if answer is None:
                return question
        steps.send(tuple(answer for answer in found if answer is not None))
    return None
