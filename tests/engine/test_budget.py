"""The budget is never exceeded, and used as far as it is safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.engine import EngineStopped
from distill.engine.budget import Budget, TokenPrice, most_prompt_tokens, spent_usd
from distill.engine.journal.store import Journal
from distill.engine.mock_server import (
    TRUNCATED,
    MockServer,
    first,
    status,
)
from distill.engine.providers import Reply
from distill.engine.providers.scripted import Scripted
from distill.errors import (
    BudgetStop,
    RecipeError,
)
from distill.types import Flow, Message, Request, Sampling
from tests.support.engine.engines import ask, budget, engine, many, one, remote


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


def priced(count: int) -> list[tuple[str, Callable[[], Flow[str]]]]:
    """Each answer costs 0.001 USD a word; ten words are reserved."""
    return [(f"q{n}", lambda n=n: one(f"q{n}", sampling=Sampling(max_tokens=10))) for n in range(count)]


FIVE_WORDS = Scripted(lambda request: "one two three four five", latency_seconds=0.01)


@pytest.mark.parametrize("concurrency", [1, 16])
def test_the_cap_is_never_exceeded_and_used_as_far_as_it_is_safe(journal: Journal, concurrency: int) -> None:
    driven = engine(journal, FIVE_WORDS, concurrency=concurrency, budget=budget(0.1))
    with pytest.raises(BudgetStop, match=r"the budget of USD 0\.10 is used up") as caught:
        driven.run(priced(100))
    assert isinstance(caught.value, EngineStopped)
    assert caught.value.exit_code == 3
    worst = (most_prompt_tokens(ask("q0")) * 1.0 + 10 * 1000) / 1e6
    assert 0.1 - worst < (driven.tally.usd or 0) <= 0.1
    assert len(caught.value.outcomes) == driven.tally.asked == 18


def test_everything_bought_is_finished_even_behind_what_cannot_be(journal: Journal) -> None:
    engine(journal, FIVE_WORDS).run(priced(20)[10:])
    with pytest.raises(EngineStopped) as caught:
        engine(journal, FIVE_WORDS, concurrency=2, budget=budget(0.0001)).run(priced(20))
    assert [outcome.id for outcome in caught.value.outcomes] == [f"q{n}" for n in range(10, 20)]


def test_what_earlier_runs_spent_counts(journal: Journal) -> None:
    driven = engine(journal, FIVE_WORDS, budget=budget(0.1, spent_usd=0.08))
    with pytest.raises(BudgetStop):
        driven.run(priced(100))
    assert driven.tally.asked == 2


def test_the_spending_of_earlier_runs_is_in_the_journal(journal: Journal) -> None:
    driven = engine(journal, FIVE_WORDS, budget=budget(None), stage="collect")
    driven.run(priced(10))
    engine(journal, Scripted(lambda request: Reply(text="unreported")), stage="compare").run(priced(11))
    prices = {"teacher": TokenPrice(input=1.0, output=1000.0)}
    assert spent_usd(journal.costs(), prices, "collect") == pytest.approx(driven.tally.usd)
    assert spent_usd(journal.costs(), prices, "compare") == pytest.approx(0.01, rel=0.01)


def test_a_send_that_may_have_been_billed_counts_in_full(journal: Journal) -> None:
    with MockServer(fault=first(1, TRUNCATED)) as server:
        driven = engine(journal, remote(server), budget=budget(1.0))
        driven.run(priced(1))
    worst = (most_prompt_tokens(ask("q0")) * 1.0 + 10 * 1000) / 1e6
    assert driven.tally.usd == pytest.approx(worst + (1 * 1.0 + 3 * 1000) / 1e6)


def test_a_refused_send_costs_nothing(journal: Journal) -> None:
    with MockServer(fault=first(3, status(429))) as server:
        driven = engine(journal, remote(server), budget=budget(1.0))
        driven.run(priced(1))
    assert driven.tally.usd == pytest.approx(0.003001)


def test_an_answer_without_a_report_costs_its_worst_case(journal: Journal) -> None:
    driven = engine(journal, Scripted(lambda request: Reply(text="a")), budget=budget(1.0))
    driven.run(priced(1))
    assert driven.tally.usd == pytest.approx(0.01, rel=0.01)


def test_a_cap_needs_a_price_and_a_bound(journal: Journal) -> None:
    with pytest.raises(RecipeError, match="needs a price, and teacher has none"):
        engine(journal, budget=Budget({}, cap_usd=1))
    with pytest.raises(RecipeError, match=r"needs sampling\.max_tokens for the teacher"):
        engine(journal, budget=budget(1.0)).run(many(1))
    assert journal.counts()["intents"] == 0


def test_prices_without_a_cap_only_count(journal: Journal) -> None:
    driven = engine(journal, FIVE_WORDS, budget=budget(None))
    driven.run(many(10))
    assert driven.tally.usd == pytest.approx(0.05001)
    assert (driven.tally.prompt_tokens, driven.tally.completion_tokens) == (10, 50)


@given(st.text(), st.lists(st.text()))
def test_the_prompt_bound_counts_every_byte(prompt: str, turns: list[str]) -> None:
    chat = Request(role="teacher", messages=tuple(Message("user", turn) for turn in turns))
    assert most_prompt_tokens(ask(prompt)) >= len(prompt.encode("utf-8", "replace"))
    assert most_prompt_tokens(chat) >= sum(len(turn.encode("utf-8", "replace")) + 16 for turn in turns)
