"""State of one running flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from distill.engine import Outcome
from distill.engine.providers import one_line
from distill.errors import RunFolderError, disk_fault
from distill.types import Answer, Completion, Failure, Flow, Request

T = TypeVar("T")

Flows: TypeAlias = Sequence[tuple[str, Callable[[], Flow[T]]]]
"""Each flow's id and the function that makes it."""
Choose: TypeAlias = Callable[[str, str], str]
"""Maps a flow's id and a request's role to the name of the model that answers it."""


def by_role(flow: str, role: str) -> str:
    """The model of the same name as the role."""
    return role


class FlowState(Generic[T]):
    """One running flow: its pending requests, or its outcome."""

    def __init__(self, name: str, make: Callable[[], Flow[T]], choose: Choose) -> None:
        self.name = name
        self.usd = 0.0
        """Cost of its answers, whether bought now or replayed."""
        self.tokens = 0
        """Tokens of these answers, as reported."""
        self._choose = choose
        self.requests: tuple[Request, ...] = ()
        self.outcome: Outcome[T] | None = None
        self._is_single = False
        self._failures: list[Failure] = []
        self._flow: Flow[T] | None = None
        self._step(lambda: next(self._begin(make)))

    def _begin(self, make: Callable[[], Flow[T]]) -> Flow[T]:
        self._flow = make()
        return self._flow

    @property
    def names(self) -> tuple[str, ...]:
        """The model that answers each of the requests."""
        return tuple([self._choose(self.name, request.role) for request in self.requests])

    def send(self, answers: tuple[Answer, ...]) -> None:
        """Send the answers into the flow and run it to its next requests or its end."""
        flow = self._flow
        assert flow is not None
        self._failures += [answer for answer in answers if isinstance(answer, Failure)]
        usages = [answer.usage for answer in answers if isinstance(answer, Completion)]
        self.tokens += sum(usage.completion_tokens for usage in usages if usage is not None)
        self._step(lambda: flow.send(answers[0] if self._is_single else answers))

    def _step(self, advance: Callable[[], Any]) -> None:
        try:
            value = advance()
            self._is_single = isinstance(value, Request)
            self.requests = (value,) if isinstance(value, Request) else _requests(value)
        except StopIteration as end:
            self.outcome = Outcome(self.name, end.value, tuple(self._failures))
        except Exception as error:  # a part of the user may raise anything; that ends this flow alone
            if isinstance(error, MemoryError):
                raise RunFolderError("memory ran out; free some and run the same command again") from error
            if isinstance(error, OSError) and (fault := disk_fault(error)) is not None:
                raise fault from error  # the machine is at fault, not the part
            line = one_line(f"{type(error).__name__}: {error}")
            failure = Failure(key="", reason="error", detail=line, transient=False)
            self.outcome = Outcome(self.name, None, (*self._failures, failure), line)
            self.close()

    def close(self) -> None:
        """Close the generator; exceptions that it raises meanwhile are ignored."""
        if self._flow is not None:
            with suppress(Exception):
                self._flow.close()


def _requests(value: Any) -> tuple[Request, ...]:
    if isinstance(value, tuple) and all(isinstance(request, Request) for request in value):
        return value
    raise TypeError(f"the flow yielded a {type(value).__name__}, expected a Request or a tuple of them")


class Runs(Protocol):
    """Interface of `Engine` and of `Passes`, which runs flows through batches."""

    def run(self, flows: Flows[T], *, choose: Choose = by_role) -> list[Outcome[T]]:
        """Run every flow to its end; one outcome per flow, in input order."""
