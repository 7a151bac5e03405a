"""Flows of plain questions, and an engine over a scripted or a real endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distill.engine import Outcome
from distill.engine.budget import Budget, TokenPrice
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.mock_server import (
    MockServer,
)
from distill.engine.policy import BoundEndpoint
from distill.engine.providers import Provider
from distill.engine.providers.openai import OpenAIProvider
from distill.engine.providers.scripted import Scripted
from distill.types import Completion, Endpoint, Flow, Request

ECHO = Scripted(lambda request: f"answer to {request.prompt}")


def ask(prompt: str, **options: Any) -> Request:
    return Request(role="teacher", prompt=prompt, **options)


def one(prompt: str, **options: Any) -> Flow[str]:
    """Asks once and returns the text, or the failure's reason."""
    answer = yield ask(prompt, **options)
    return answer.text if isinstance(answer, Completion) else f"failed: {answer.reason}"


def flows(*prompts: str) -> list[tuple[str, Callable[[], Flow[str]]]]:
    return [(prompt, lambda prompt=prompt: one(prompt)) for prompt in prompts]


def many(count: int) -> list[tuple[str, Callable[[], Flow[str]]]]:
    return flows(*(f"q{number}" for number in range(count)))


def bound(**providers: Provider) -> dict[str, BoundEndpoint]:
    """Providers without limits or prices of their own."""
    return {name: BoundEndpoint(provider) for name, provider in providers.items()}


def engine(journal: Journal, provider: Provider = ECHO, **options: Any) -> Engine:
    return Engine(
        journal, bound(teacher=provider), **{"first_wait_seconds": 0.01, "longest_wait_seconds": 0.05, **options}
    )


def remote(server: MockServer, **options: Any) -> OpenAIProvider:
    return OpenAIProvider(server.url, "m", endpoint=Endpoint(model="m"), **options)


def values(outcomes: Sequence[Outcome[Any]]) -> list[Any]:
    return [outcome.value for outcome in outcomes]


def budget(cap_usd: float | None, **options: Any) -> Budget:
    return Budget({"teacher": TokenPrice(input=1.0, output=1000.0)}, cap_usd=cap_usd, **options)
