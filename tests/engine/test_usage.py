"""Whatever an endpoint says of itself, the journal can be read again, neighbours are kept, and the cap holds."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from distill.engine import StoppedByBudget
from distill.engine.budget import Budget, TokenPrice, spent_usd
from distill.engine.engine import Engine
from distill.engine.journal.keys import Question
from distill.engine.journal.records import answered, settled
from distill.engine.journal.store import Journal
from distill.engine.mock_server import Fault, MockServer, asking, question
from distill.engine.providers.openai import OpenAIProvider
from distill.errors import RunFolderError
from distill.types import Completion, Endpoint, Flow, Message, Request, Sampling, Usage
from tests.support.engine.engines import bound
from tests.support.engine.journal_rows import entries_of

PRICE = TokenPrice(input=1.0, output=1000.0)
MOST = 20
"""Tokens of an answer that are asked for."""

numbers = st.one_of(
    st.integers(-(10**30), 10**30), st.floats(), st.booleans(), st.text(max_size=3), st.none(), st.just([]),
    st.integers(0, 60),
)  # fmt: skip
usages = st.one_of(
    st.fixed_dictionaries(
        {}, optional={"prompt_tokens": numbers, "completion_tokens": numbers, "total_tokens": numbers}
    ),
    numbers,
    st.just({"prompt_tokens": 9, "completion_tokens": 9}),
)
oddities = st.fixed_dictionaries(
    {},
    optional={
        "system_fingerprint": st.one_of(st.text(max_size=5), numbers),
        "deep": st.sampled_from([1, 90, 900, 5000]),
        "twice": st.booleans(),
    },
)


def body(usage: Any, odd: dict[str, Any], asked: str) -> str:
    """A response of HTTP 200 with this usage; NaN and Infinity are written as Python does."""
    depth = odd.get("deep", 0)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"answer to {asked}"}}
    shown = json.dumps({"id": "x", "usage": usage, "odd": odd.get("system_fingerprint"), "choices": [choice]})
    more = f'"deep": {"[" * depth}{"]" * depth}' if depth else '"deep": 0'
    return f"{shown[:-1]}, {more}" + (', "usage": {"prompt_tokens": 3}}' if odd.get("twice") else "}")


def ask(text: str) -> Request:
    return Request(role="teacher", messages=(Message("user", text),), sampling=Sampling(max_tokens=MOST))


def one(text: str) -> Flow[str]:
    answer = yield ask(text)
    return answer.text if isinstance(answer, Completion) else answer.reason


def drive(folder: Path, url: str, cap: float, texts: list[str]) -> None:
    with Journal.open(folder / "journal.sqlite") as journal:
        spent = spent_usd(journal.costs(), {"teacher": PRICE})
        budget = Budget({"teacher": PRICE}, cap_usd=cap, spent_usd=spent)
        provider = OpenAIProvider(url, "m", endpoint=Endpoint(model="m"))
        engine = Engine(journal, bound(teacher=provider), budget=budget, attempts=1, concurrency=4)
        try:
            engine.run([(text, lambda text=text: one(text)) for text in texts])
        except StoppedByBudget:
            event("stopped by the budget")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(usages, oddities), min_size=4, max_size=12), st.integers(1, 8))
def test_the_journal_is_read_again_and_the_cap_holds(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[Any, Any]], affordable: int
) -> None:
    folder = tmp_path_factory.mktemp("usage")
    texts = [f"q{number}" for number in range(len(said))]
    bodies = {text: body(*odd, text) for text, odd in zip(texts, said, strict=True)}

    def fault(number: int, sent: Any) -> Fault:
        return Fault("status", 200, {"Content-Type": "application/json"}, bodies[question(sent)])

    cap = affordable * (Budget({"teacher": PRICE}).most("teacher", ask("q10")).usd or 0)
    with MockServer(fault=fault) as server:
        drive(folder, server.url, cap, texts)
        first = server.count
        drive(folder, server.url, cap, texts)
    with Journal.open(folder / "journal.sqlite", read_only=True) as journal:
        entries = entries_of(journal)
        assert [entry.completion.text for entry in entries] == [
            f"answer to {entry.request.messages[0].content}" for entry in entries
        ]
        assert all(journal.get(entry.completion.key) == entry.completion for entry in entries)
        assert journal.counts()["answers"] + journal.counts()["failures"] >= first
        costs = journal.costs()
        assert 0 <= spent_usd(costs, {"teacher": PRICE}) <= cap * (1 + 1e-9)
        assert all(cost.prompt_tokens >= 0 and cost.completion_tokens >= 0 for cost in costs)
        tokens = journal.tokens()
        assert 0 <= tokens.completion_tokens <= MOST * len(entries)
    event(f"answers kept: {len(entries) == first}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -(10**9), "completion_tokens": 5}, {"prompt_tokens": 2**70, "completion_tokens": 1}, {},
              {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": 9, "completion_tokens": 0},
              {"prompt_tokens": 0, "completion_tokens": 9}, {"prompt_tokens": 9, "completion_tokens": MOST + 1},
              {"prompt_tokens": True, "completion_tokens": 1}, {"prompt_tokens": 9.5, "completion_tokens": 1}]
)  # fmt: skip
def test_a_count_that_cannot_be_is_not_reported_and_the_most_is_charged(tmp_path: Path, usage: dict[str, Any]) -> None:
    said = Fault("status", 200, {"Content-Type": "application/json"}, body(usage, {}, "q0"))
    with MockServer(fault=lambda number, sent: said) as server:
        drive(tmp_path, server.url, 1.0, ["q0"])
    with Journal.open(tmp_path / "journal.sqlite", read_only=True) as journal:
        (entry,) = entries_of(journal)
        assert (entry.completion.text, entry.completion.usage) == ("answer to q0", None)
        assert spent_usd(journal.costs(), {}) == Budget({"teacher": PRICE}).most("teacher", ask("q0")).usd


def test_a_whole_number_of_another_type_is_a_count(tmp_path: Path) -> None:
    said = Fault("status", 200, {}, body({"prompt_tokens": 9.0, "completion_tokens": 3.0}, {}, "q0"))
    with MockServer(fault=lambda number, sent: said) as server:
        drive(tmp_path, server.url, 1.0, ["q0"])
    with Journal.open(tmp_path / "journal.sqlite", read_only=True) as journal:
        assert journal.tokens() == Usage(9, 3)


def test_a_row_that_cannot_be_stored_fails_alone_and_its_text_is_kept(tmp_path: Path) -> None:
    endpoint = Endpoint(model="m")
    asked = [Question.of(ask(f"q{number}"), endpoint) for number in range(3)]

    def change(number: int) -> Any:
        completion = Completion(
            key=asked[number].key,
            text=f"a{number}",
            finish="stop",
            usage=Usage(1, 1),
            loglikelihood=2**70 if number == 1 else 0.5,
        )
        return answered(completion, asked[number].request_json, "answer", endpoint, stage="collect")

    async def write(journal: Journal) -> list[Any]:
        return await asyncio.gather(*(journal.commit(change(number)) for number in range(3)), return_exceptions=True)

    with Journal.open(tmp_path / "journal.sqlite") as journal:
        assert not any(isinstance(result, Exception) for result in asyncio.run(write(journal)))
        kept = {entry.completion.text: entry.completion.usage for entry in entries_of(journal)}
        assert kept == {"a0": Usage(1, 1), "a1": None, "a2": Usage(1, 1)}


def test_a_row_that_has_nothing_to_store_fails_alone(tmp_path: Path) -> None:
    async def write(journal: Journal) -> list[Any]:
        bad = (("UPDATE intents SET prompt_tokens = ?", (2**70,)),)
        good = (settled(1, None, "kept"),)
        return await asyncio.gather(journal.commit(good), journal.commit(bad), return_exceptions=True)

    with Journal.open(tmp_path / "journal.sqlite") as journal:
        good, bad = asyncio.run(write(journal))
        assert isinstance(bad, RunFolderError)
        assert not isinstance(good, Exception)


def test_one_bad_count_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    texts = [f"q{number}" for number in range(33)]
    odd = Fault("status", 200, {}, body({"prompt_tokens": 2**80, "completion_tokens": 1}, {}, "q7"))
    with MockServer(fault=asking("q7", odd)) as server:
        drive(tmp_path, server.url, 100.0, texts)
        drive(tmp_path, server.url, 100.0, texts)
        assert server.count == 33
    with Journal.open(tmp_path / "journal.sqlite", read_only=True) as journal:
        assert {entry.completion.text for entry in entries_of(journal)} == {f"answer to {text}" for text in texts}
