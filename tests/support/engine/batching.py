"""Flows that are asked in batches of a provider."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from distill.engine import Outcome
from distill.engine.batch.client import BatchJobs
from distill.engine.batch.runner import Passes
from distill.engine.budget import Budget, TokenPrice, spent_usd
from distill.engine.journal.store import Journal
from distill.engine.providers.openai import OpenAIProvider
from distill.types import Completion, Endpoint, Flow, Message, Request, Sampling
from tests.support.engine.batch_server import BatchServer

KEY = "sk-a-secret-that-is-nowhere"


PRICES = {"teacher": TokenPrice(input=1000.0, output=1000.0)}
"""USD a million tokens: an answer of 10 and 5 tokens costs 0.015 USD."""


def ask(prompt: str, **options: Any) -> Request:
    sampling = Sampling(max_tokens=5, **options)
    return Request(role="teacher", messages=(Message("user", prompt),), sampling=sampling)


def one(prompt: str) -> Flow[str]:
    answer = yield ask(prompt)
    return answer.text if isinstance(answer, Completion) else f"failed: {answer.reason}"


def flows(*prompts: str) -> list[tuple[str, Callable[[], Flow[str]]]]:
    return [(prompt, lambda prompt=prompt: one(prompt)) for prompt in prompts]


def many(count: int) -> list[tuple[str, Callable[[], Flow[str]]]]:
    return flows(*(f"q{number}" for number in range(count)))


def answers(count: int) -> list[str]:
    return [f"answer to q{number}" for number in range(count)]


def values(outcomes: list[Outcome[str]]) -> list[str | None]:
    return [outcome.value for outcome in outcomes]


def jobs(server: BatchServer, key: str = KEY, **options: Any) -> BatchJobs:
    provider = OpenAIProvider(server.url, "m", endpoint=Endpoint(model="m"), api_key=key)
    return BatchJobs(provider, first_wait_seconds=0.01, **options)


def passes(journal: Journal, server: BatchServer, **options: Any) -> Passes:
    return Passes(journal, {"teacher": jobs(server)}, **{"stage": "collect", "poll_seconds": 0.01, **options})


def capped(journal: Journal, usd: float) -> Budget:
    return Budget(PRICES, cap_usd=usd, spent_usd=spent_usd(journal.costs(), PRICES))


def outcomes_of_sends(journal: Journal) -> list[str | None]:
    with sqlite3.connect(journal.path) as connection:
        return [outcome for (outcome,) in connection.execute("SELECT outcome FROM intents ORDER BY id")]
