"""The collector against a server that limits, fails and dies: what it sends, what it keeps, and what it pays."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.engine import EngineStopped
from distill.engine.budget import Budget, TokenPrice, most_prompt_tokens, spent_usd
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.mock_server import HANG, MockServer, RateLimits, asking, faults, first, some, status
from distill.engine.policy import BoundEndpoint
from distill.engine.progress import PILOT, RunningMean
from distill.engine.providers import Provider, ProviderError, Reply
from distill.engine.providers.openai import OpenAIProvider
from distill.engine.providers.scripted import Scripted
from distill.engine.rate_limits import Rates
from distill.errors import BudgetStop, EndpointError
from distill.types import Completion, Endpoint, Flow, Request, Sampling, Usage
from tests.support.engine.engines import bound
from tests.support.engine.journal_rows import entries_of

ROOT = Path(__file__).resolve().parents[2]
PRICE = {"teacher": TokenPrice(input=1.0, output=1000.0)}


def one(prompt: str, **sampling: Any) -> Flow[str]:
    answer = yield Request(role="teacher", prompt=prompt, sampling=Sampling(**{"max_tokens": 10, **sampling}))
    return answer.text if isinstance(answer, Completion) else f"failed: {answer.reason}"


def flows(count: int, start: int = 0, **sampling: Any) -> list[tuple[str, Callable[[], Flow[str]]]]:
    return [(f"q{n}", lambda n=n: one(f"q{n}", **sampling)) for n in range(start, start + count)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


def engine(journal: Journal, provider: Provider, *, rates: Rates | None = None, **options: Any) -> Engine:
    waits = {"first_wait_seconds": 0.01, "longest_wait_seconds": 0.05}
    return Engine(journal, {"teacher": BoundEndpoint(provider, rates or Rates())}, **{**waits, **options})


def remote(server: MockServer, **options: Any) -> OpenAIProvider:
    return OpenAIProvider(server.url, "m", endpoint=Endpoint(model="m"), **options)


def texts(count: int) -> list[str]:
    return [f"answer to q{n}" for n in range(count)]


# --- limits


@pytest.mark.slow
def test_the_recipes_requests_a_minute_are_never_exceeded(journal: Journal) -> None:
    with MockServer() as server:
        rates = Rates(requests_per_minute=1200)
        engine(journal, remote(server), rates=rates).run(flows(60))
    busiest = max(sum(start <= at < start + 1 for at in server.times) for start in server.times)
    assert busiest <= 20 + 20  # the burst of a second, and a second's worth
    assert server.times[-1] - server.times[0] >= (60 - 20) / 20 * 0.95


@pytest.mark.slow
def test_the_recipes_tokens_a_minute_slow_the_pace(journal: Journal) -> None:
    with MockServer() as server:
        rates = Rates(tokens_per_minute=6000)  # an answer is 3 tokens and a question 1, 100 per second
        started = time.monotonic()
        engine(journal, remote(server), rates=rates, concurrency=4).run(flows(100))
        assert 1.5 < time.monotonic() - started < 8


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"requests_per_minute": 20}, {"tokens_per_minute": 220}])
def test_a_server_that_says_what_is_left_is_hardly_ever_run_into(journal: Journal, limits: dict[str, int]) -> None:
    with MockServer(limits=RateLimits(**limits, per_seconds=0.5, retry_after=False)) as server:
        outcomes = engine(journal, remote(server), concurrency=8).run(flows(60))
    assert [outcome.value for outcome in outcomes] == texts(60)
    assert server.count - 60 <= 16  # what was in flight when the first remainder was heard, twice


@pytest.mark.slow
def test_a_server_that_says_nothing_is_asked_less_at_once(journal: Journal) -> None:
    at_once = 0

    def narrow(number: int, body: dict[str, Any]) -> Any:
        return status(429) if server.in_flight > 5 else None

    with MockServer(latency_seconds=0.02, fault=narrow) as server:
        driven = engine(journal, remote(server), concurrency=64, attempts=30)
        outcomes = driven.run(flows(600))
    assert [outcome.value for outcome in outcomes] == texts(600)
    late = driven.tally.retried / 600
    assert late < 0.6, f"{late:.0%} of the requests were sent again; {at_once}"


@pytest.mark.slow
def test_two_hundred_told_to_wait_wait_once(journal: Journal) -> None:
    with MockServer(fault=first(200, status(429, {"Retry-After": "1"}))) as server:
        started = time.monotonic()
        outcomes = engine(journal, remote(server), concurrency=200).run(flows(200))
        seconds = time.monotonic() - started
    assert [outcome.value for outcome in outcomes] == texts(200)
    assert server.count == 400
    assert 1 < seconds < 2.5


@pytest.mark.slow
def test_names_of_one_endpoint_and_key_share_its_limit(tmp_path: Path, journal: Journal) -> None:
    with MockServer(latency_seconds=0.02) as server:
        same = {"a": remote(server), "b": remote(server)}
        Engine(journal, bound(**same), concurrency=4).run(flows(80), choose=lambda id, role: "ab"[int(id[1:]) % 2])
        assert server.most_in_flight == 4
    with MockServer(latency_seconds=0.02) as server, Journal.open(tmp_path / "other.sqlite") as other:
        keys = {"a": remote(server, api_key="first-key"), "b": remote(server, api_key="second-key")}
        Engine(other, bound(**keys), concurrency=4).run(flows(80), choose=lambda id, role: "ab"[int(id[1:]) % 2])
        assert server.most_in_flight == 8


# --- errors


@pytest.mark.slow
def test_faults_of_every_kind_lose_nothing_and_buy_nothing_twice(journal: Journal) -> None:
    script = faults(0.3, seed=1, retry_after_seconds=0.1, drip_seconds=0.02)
    with MockServer(latency_seconds=0.02, fault=script) as server:
        outcomes = engine(journal, remote(server, timeout_seconds=0.5), concurrency=32, attempts=20).run(flows(400))
        kept = Counter(server.questions())
    assert [outcome.value for outcome in outcomes] == texts(400)
    assert all(server.times_answered(f"q{n}") <= kept[f"q{n}"] for n in range(400))
    assert journal.counts()["answers"] == 400


@pytest.mark.slow
def test_an_outage_opens_the_breaker_and_the_run_goes_on_by_itself(journal: Journal) -> None:
    begun = time.monotonic()

    def down(number: int, body: dict[str, Any]) -> Any:
        return status(500) if time.monotonic() - begun < 3 else None

    with MockServer(fault=down) as server:
        outcomes = engine(journal, remote(server), concurrency=100, attempts=10).run(flows(200))
    assert [outcome.value for outcome in outcomes] == texts(200)
    assert server.count < 200 + 200, "a server that was down was not hammered"


def test_a_wrong_key_costs_what_is_in_flight_at_most(journal: Journal) -> None:
    with MockServer(latency_seconds=0.05, fault=some(1.0, status(401))) as server:
        with pytest.raises(EndpointError, match=r"HTTP 401.*check the key"):
            engine(journal, remote(server), concurrency=16).run(flows(500))
        assert server.count <= 16


def test_one_bad_prompt_in_a_hundred_costs_itself(journal: Journal) -> None:
    with MockServer(fault=asking("q42", status(400))) as server:
        outcomes = engine(journal, remote(server)).run(flows(100))
    assert [outcome.value for outcome in outcomes if outcome.id != "q42"] == [t for t in texts(100) if t[-2:] != "42"]
    assert outcomes[42].value == "failed: http_400"
    assert server.count == 100


def test_a_part_that_raises_costs_no_answer_and_the_next_run_replays_it(journal: Journal) -> None:
    def broken(n: int) -> Flow[str]:
        yield from one(f"q{n}")
        raise ValueError("a parser's bug")

    with MockServer() as server:
        first_run = engine(journal, remote(server)).run([(f"q{n}", lambda n=n: broken(n)) for n in range(20)])
        assert {outcome.error for outcome in first_run} == {"ValueError: a parser's bug"}
        again = engine(journal, remote(server)).run(flows(20))
        assert [outcome.value for outcome in again] == texts(20)
        assert server.count == 20


@pytest.mark.parametrize("changed", ["system", "base_url", "temperature", "extra_body", "response_format"])
def test_no_stale_answer_after_a_change(journal: Journal, changed: str) -> None:
    def flow(value: int) -> Flow[str]:
        answer = yield Request(
            role="teacher",
            prompt=f"system {value}" if changed == "system" else "q",
            sampling=Sampling(
                temperature=value / 10 if changed == "temperature" else None,
                extra_body={"top_k": value} if changed == "extra_body" else {},
                response_format={"type": f"t{value}"} if changed == "response_format" else None,
            ),
        )
        return str(answer.text)

    bodies = []
    for value in (1, 2):
        with MockServer(answer=lambda body, value=value: f"answer {value}") as server:
            endpoint = Endpoint(model="m", url=f"http://host{value}" if changed == "base_url" else "http://host")
            provider = OpenAIProvider(server.url, "m", endpoint=endpoint)
            [outcome] = engine(journal, provider).run([("x", lambda value=value: flow(value))])
            assert outcome.value == f"answer {value}"
            bodies += server.bodies
    assert len(bodies) == 2
    if changed in {"temperature", "response_format"}:
        assert changed in bodies[1]
    if changed == "extra_body":
        assert bodies[1]["top_k"] == 2


def test_an_answer_is_cut_at_our_stop_string_where_the_server_ignores_it(journal: Journal) -> None:
    with MockServer(answer=lambda body: "one\ntwo\nthree", finish="length") as server:
        outcomes = engine(journal, remote(server)).run(flows(1, stop=("\n",)))
    assert outcomes[0].value == "one"
    [entry] = entries_of(journal)
    assert entry.completion.finish == "stop"
    assert entry.completion.raw["choices"][0]["text"] == "one\ntwo\nthree"


# --- money


def test_the_cap_holds_at_two_hundred_in_flight_and_more_money_goes_on(journal: Journal) -> None:
    with MockServer(latency_seconds=0.01) as server:
        driven = engine(journal, remote(server), concurrency=200, budget=Budget(PRICE, cap_usd=0.1))
        with pytest.raises(BudgetStop) as stop:
            driven.run(flows(300))
        spent = spent_usd(journal.costs(), PRICE)
        assert 0.08 < spent <= 0.1
        assert spent == pytest.approx(driven.tally.usd)
        done = server.count
        assert isinstance(stop.value, EngineStopped)
        assert len(stop.value.outcomes) == done
        budget = Budget(PRICE, cap_usd=10.0, spent_usd=spent)
        outcomes = engine(journal, remote(server), concurrency=200, budget=budget).run(flows(300))
        assert [outcome.value for outcome in outcomes] == texts(300)
        assert server.count == 300


def test_what_each_send_became_and_cost_is_in_the_journal(journal: Journal) -> None:
    faults = {0: status(500), 1: status(429), 2: HANG}

    def script(number: int, body: dict[str, Any]) -> Any:
        return asking("q2", status(400))(number, body) or faults.get(number)

    with MockServer(fault=script) as server:
        driven = engine(
            journal, remote(server, timeout_seconds=0.3), budget=Budget(PRICE), concurrency=1, stage="collect"
        )
        driven.run(flows(3))
    worst = (most_prompt_tokens(Request(role="teacher", prompt="q0")) + 10 * 1000) / 1e6
    by = {cost.outcome: cost for cost in journal.costs()}
    assert {outcome: cost.sends for outcome, cost in by.items()} == {"kept": 2, "retried": 3, "wasted": 1}
    assert by["kept"].usd == pytest.approx(2 * 0.003001)
    assert by["retried"].usd == pytest.approx(2 * worst)  # the 500 and the timeout may have been billed, the 429 not
    assert by["wasted"].usd == 0  # a bad request generates nothing
    assert {(cost.stage, cost.role, cost.model) for cost in by.values()} == {("collect", "teacher", "m")}
    assert spent_usd(journal.costs(), PRICE) == pytest.approx(driven.tally.usd)


CHILD = """
import sys
from pathlib import Path
from distill.engine.budget import Budget, TokenPrice
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.policy import BoundEndpoint
from distill.engine.providers.openai import OpenAIProvider
from tests.engine.test_collector import flows
with Journal.open(Path(sys.argv[2])) as journal:
    price = {"teacher": TokenPrice(input=1.0, output=1000.0)}
    provider = BoundEndpoint(OpenAIProvider(sys.argv[1], "m"))
    Engine(journal, {"teacher": provider}, concurrency=8, budget=Budget(price)).run(flows(400))
"""


@pytest.mark.slow
def test_what_is_in_flight_at_a_kill_is_charged_in_full(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with MockServer(latency_seconds=0.1) as server:
        process = subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(path)], cwd=ROOT)
        while server.answered < 30:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with Journal.open(path) as journal:
        by = {cost.outcome: cost for cost in journal.costs()}
        assert 1 <= by["in flight"].sends <= 8
        assert by["kept"].sends + by["in flight"].sends >= server.count
        worst = (most_prompt_tokens(Request(role="teacher", prompt="q0")) + 10 * 1000) / 1e6
        assert by["in flight"].usd >= by["in flight"].sends * worst
        assert spent_usd(journal.costs(), PRICE) == pytest.approx(by["kept"].usd + by["in flight"].usd)


def test_a_forecast_waits_for_its_pilot_and_its_range_holds_the_truth() -> None:
    held = 0
    for seed in range(200):
        rng = random.Random(seed)
        costs = [rng.expovariate(1) for _ in range(500)]
        spread = RunningMean()
        for value in costs[:PILOT]:
            assert spread.total(500) is None
            spread.add(value)
        for value in costs[PILOT:60]:
            spread.add(value)
        _, low, high = spread.total(500) or (0, 0, 0)
        held += low <= sum(costs) <= high
    assert held >= 170  # 95% nominal; the costs are skewed


@pytest.mark.slow
def test_the_progress_line_tells_rate_cost_forecast_and_limit(journal: Journal) -> None:
    notes: list[str] = []

    class Notes:
        def update(self, done: float, total: float | None = None, note: str = "") -> None:
            notes.append(note)

    with MockServer(latency_seconds=0.05, fault=some(0.1, status(400), seed=3)) as server:
        engine(journal, remote(server), progress=Notes(), budget=Budget(PRICE), concurrency=4).run(flows(60))
    last = [note for note in notes if "in flight" in note][-1]
    for part in ("failed", "in flight", "req/s", "tok/s", ", all USD 0.", "limit 4"):
        assert part in last, last


# --- hygiene


def test_a_key_and_a_password_in_the_address_reach_neither_journal_nor_error(tmp_path: Path) -> None:
    key, path = "sk-very-secret-0123456789", tmp_path / "journal.sqlite"
    with MockServer(fault=first(3, status(500, body={"error": {"message": f"your key {key} is tired"}}))) as server:
        address = server.url.replace("http://", "http://user:hunter2hunter2@").replace("/v1", "/v1?token=abcdefghij")
        with Journal.open(path) as journal:
            engine(journal, OpenAIProvider(address, "m", headers={"X-Key": key})).run(flows(5))
            asked = server.url.replace("/v1", "")
            assert {entry.endpoint.url for entry in entries_of(journal)} == {f"{asked}/v1"}
    for file in tmp_path.iterdir():
        data = file.read_bytes()
        assert not [word for word in (key, "hunter2", "abcdefghij") if word.encode() in data]


def test_a_body_that_never_ends_is_cut_off(journal: Journal) -> None:
    with MockServer(answer=lambda body: "x" * 200_000) as server:
        outcomes = engine(journal, remote(server, largest_body_bytes=100_000)).run(flows(1))
    assert outcomes[0].value == "failed: too_large"


def test_reasoning_logprobs_and_refusals_are_kept_whole(journal: Journal) -> None:
    message = {"role": "assistant", "content": "42", "reasoning_content": "let me think", "refusal": None}
    logprobs = {"content": [{"token": "4", "logprob": -0.1}]}
    body = {
        "id": "r1",
        "model": "m",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message, "logprobs": logprobs}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 1}},
    }
    with MockServer(answer=lambda asked: body) as server:
        engine(journal, remote(server)).run(flows(1, logprobs=True, top_logprobs=2, reasoning_effort="low"))
        assert server.bodies[0]["reasoning_effort"] == "low"
    [entry] = entries_of(journal)
    assert json.loads(json.dumps(entry.completion.raw)) == body


def test_a_provider_without_a_report_of_its_own_is_settled_at_most(journal: Journal) -> None:
    driven = engine(journal, Scripted(lambda request: Reply(text="a", usage=None)), budget=Budget(PRICE))
    driven.run(flows(2))
    assert spent_usd(journal.costs(), PRICE) == pytest.approx(driven.tally.usd)
    assert driven.tally.usd == pytest.approx(0.02, rel=0.01)


def test_a_bill_that_was_bought_before_the_price_was_known_is_counted_by_todays(journal: Journal) -> None:
    engine(journal, Scripted(lambda request: Reply(text="a", usage=Usage(1, 3)))).run(flows(2))
    assert spent_usd(journal.costs(), {}) == 0
    assert spent_usd(journal.costs(), PRICE) == pytest.approx(2 * 0.003001)


def test_a_failed_run_writes_no_row_that_sqlite_would_call_damaged(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.open(path) as journal, pytest.raises(EndpointError):
        engine(journal, Scripted(lambda request: ProviderError("http_401", "no", fatal=True))).run(flows(10))
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
