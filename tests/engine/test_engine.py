"""The engine: flows and growths driven over real journals, scripted providers and a real server that misbehaves."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.engine import EngineStopped, Outcome, Tally
from distill.engine.budget import Budget, TokenPrice, most_prompt_tokens, spent_usd
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.mock_server import (
    EMPTY,
    HANG,
    HTML,
    RESET,
    TRUNCATED,
    Fault,
    MockServer,
    asking,
    first,
    status,
)
from distill.engine.progress import AGAIN
from distill.engine.providers import Provider, ProviderError, Reply
from distill.engine.providers.openai import OpenAIProvider
from distill.engine.providers.scripted import Line, Scripted
from distill.engine.retry import RetryPolicy
from distill.errors import (
    BudgetStop,
    DistillError,
    EndpointError,
    Interrupted,
    ModelError,
    RecipeError,
    RunFolderError,
    StageIncomplete,
)
from distill.models.in_process import Batched
from distill.types import Completion, Endpoint, Flow, Message, Request, Sampling, Task

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


def engine(journal: Journal, provider: Provider = ECHO, **options: Any) -> Engine:
    return Engine(
        journal, {"teacher": provider}, **{"first_wait_seconds": 0.01, "longest_wait_seconds": 0.05, **options}
    )


def remote(server: MockServer, **options: Any) -> OpenAIProvider:
    return OpenAIProvider(server.url, "m", endpoint=Endpoint(model="m"), **options)


def values(outcomes: Sequence[Outcome[Any]]) -> list[Any]:
    return [outcome.value for outcome in outcomes]


# --- flows


def test_outcomes_come_in_the_order_of_the_flows_whatever_the_latency(journal: Journal) -> None:
    slow = Scripted(lambda request: request.prompt or "", latency_seconds=lambda _: random.random() / 50)
    outcomes = engine(journal, slow, concurrency=8).run(many(50))
    assert [(outcome.id, outcome.value) for outcome in outcomes] == [(f"q{n}", f"q{n}") for n in range(50)]


def test_no_flows_are_no_outcomes(journal: Journal) -> None:
    assert engine(journal).run([]) == []


def test_a_flow_may_ask_again_and_again_and_several_at_once(journal: Journal) -> None:
    def flow() -> Flow[list[str]]:
        a = yield ask("a")
        none = yield ()
        pair = yield (ask(a.text), ask("b"))
        single = yield (ask("c"),)
        return [a.text, len(none), *(answer.text for answer in (*pair, *single))]

    [outcome] = engine(journal).run([("x", flow)])
    assert outcome.value == ["answer to a", 0, "answer to answer to a", "answer to b", "answer to c"]


def test_a_tuple_is_asked_at_once(journal: Journal) -> None:
    def flow() -> Flow[int]:
        answers = yield tuple(ask(str(n)) for n in range(10))
        return len(answers)

    with MockServer(latency_seconds=0.1) as server:
        assert values(engine(journal, remote(server)).run([("x", flow)])) == [10]
    assert server.most_in_flight == 10


def test_running_again_replays_and_asks_nothing(journal: Journal) -> None:
    provider = Scripted(lambda request: f"answer to {request.prompt}")
    before = engine(journal, provider).run(many(20))
    again = engine(journal, provider)
    assert again.run(many(20)) == before
    assert len(provider.requests) == 20
    assert again.tally == Tally(asked=0, replayed=20)


def test_the_same_question_in_flight_is_asked_once(journal: Journal) -> None:
    provider = Scripted(lambda request: "a", latency_seconds=0.05)
    assert values(engine(journal, provider).run(flows("q", "q", "q"))) == ["a"] * 3
    assert len(provider.requests) == 1


def test_replicas_are_asked_apart(journal: Journal) -> None:
    def flow() -> Flow[int]:
        answers = yield tuple(ask("q", replica=n) for n in range(3))
        return len({answer.key for answer in answers})

    assert values(engine(journal).run([("x", flow)])) == [3]


def test_requests_in_flight_and_flows_alive_are_bounded(journal: Journal) -> None:
    alive, most = 0, 0

    def flow(number: int) -> Flow[None]:
        nonlocal alive, most
        alive, most = alive + 1, max(most, alive + 1)
        yield (ask(f"{number}a"), ask(f"{number}b"))
        alive -= 1

    with MockServer(latency_seconds=0.02) as server:
        engine(journal, remote(server), concurrency=3).run([(str(n), lambda n=n: flow(n)) for n in range(30)])
    assert (server.most_in_flight, most, server.count) == (3, 6, 60)


def test_an_answer_is_on_the_disk_before_its_flow_sees_it(journal: Journal) -> None:
    def flow(number: int) -> Flow[bool]:
        answer = yield ask(str(number))
        return isinstance(seen.get(answer.key), Completion)

    with Journal.open(journal.path, read_only=True) as seen:
        assert values(engine(journal).run([(str(n), lambda n=n: flow(n)) for n in range(20)])) == [True] * 20


def test_every_send_is_noted_before_it_leaves(journal: Journal) -> None:
    def noted(request: Request) -> Line:
        with Journal.open(journal.path, read_only=True) as seen:
            return str(seen.counts()["intents"])

    assert values(engine(journal, Scripted(noted), concurrency=1).run(many(3))) == ["1", "2", "3"]


def test_a_flow_that_raises_costs_itself_alone_and_no_answer(journal: Journal) -> None:
    def careless() -> Flow[str]:
        answer = yield ask("c")
        return str(json.loads(answer.text)["x"])

    provider = Scripted(lambda request: f"answer to {request.prompt}")
    outcomes = engine(journal, provider).run([("bad", careless), *many(3)])
    assert values(outcomes) == [None, "answer to q0", "answer to q1", "answer to q2"]
    line = "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
    assert (outcomes[0].error, [(f.reason, f.detail) for f in outcomes[0].failures]) == (line, [("error", line)])
    assert values(engine(journal, provider).run([("mended", lambda: one("c"))])) == ["answer to c"]
    assert len(provider.requests) == 4


def test_a_flow_that_yields_something_else_is_told_so(journal: Journal) -> None:
    def odd() -> Flow[str]:
        yield "what is the capital of France?"  # type: ignore[misc]
        return ""

    [outcome] = engine(journal).run([("x", odd)])
    assert outcome.error == "TypeError: the flow yielded a str, expected a Request or a tuple of them"


def test_a_role_without_a_model_stops_before_anything_is_asked(journal: Journal) -> None:
    def flow() -> Flow[str]:
        answer = yield Request(role="judge", prompt="is it good?")
        return str(answer.text)

    with pytest.raises(RecipeError, match='no model for the role "judge"; add it to the recipe'):
        engine(journal).run([("x", flow)])
    assert journal.counts()["intents"] == 0


def test_half_a_surrogate_pair_in_an_answer_is_replaced(journal: Journal) -> None:
    with MockServer(answer=lambda body: "odd \ud800 text") as server:
        [outcome] = engine(journal, remote(server)).run(flows("q"))
        assert outcome.value == "odd ? text"
        assert engine(journal, remote(server)).run(flows("q")) == [outcome]


# --- failures and retries


@pytest.mark.parametrize("fault", [status(429), status(503), RESET, TRUNCATED, HTML, EMPTY, status(408)])
def test_what_may_pass_is_asked_again(journal: Journal, fault: Fault) -> None:
    with MockServer(fault=first(2, fault)) as server:
        driven = engine(journal, remote(server))
        assert values(driven.run(flows("q"))) == ["answer to q"]
    assert (server.count, driven.tally.asked, driven.tally.retried, driven.tally.failed) == (3, 1, 2, 0)


def test_a_server_that_hangs_is_asked_again_after_the_timeout(journal: Journal) -> None:
    with MockServer(fault=first(1, HANG)) as server:
        assert values(engine(journal, remote(server, timeout_seconds=0.2)).run(flows("q"))) == ["answer to q"]


def test_patience_ends_and_the_next_run_asks_again(journal: Journal) -> None:
    with MockServer(fault=first(4, status(503))) as server:
        [outcome] = engine(journal, remote(server), attempts=4).run(flows("q"))
        assert (outcome.value, server.count) == ("failed: http_503", 4)
        [failure] = outcome.failures
        assert (failure.transient, failure.attempts) == (True, 4)
        assert values(engine(journal, remote(server)).run(flows("q"))) == ["answer to q"]


def test_a_bad_request_is_sent_once_and_costs_no_other(journal: Journal) -> None:
    with MockServer(fault=asking("q7", status(400))) as server:
        outcomes = engine(journal, remote(server)).run(many(20))
        assert [outcome.value for outcome in outcomes if outcome.failures] == ["failed: http_400"]
        assert len([value for value in values(outcomes) if value.startswith("answer")]) == 19
        assert server.count == 20
        again = engine(journal, remote(server))
        assert again.run(many(20)) == outcomes
        assert (server.count, again.tally.replayed, again.tally.failed) == (20, 20, 0)


def test_a_permanent_failure_is_asked_again_on_request_and_then_forgotten(journal: Journal) -> None:
    with MockServer(fault=first(1, status(422))) as server:
        assert values(engine(journal, remote(server)).run(flows("q"))) == ["failed: http_422"]
        assert values(engine(journal, remote(server), retry_failed=True).run(flows("q"))) == ["answer to q"]
        assert values(engine(journal, remote(server)).run(flows("q"))) == ["answer to q"]
    assert server.count == 2


def test_retry_failed_asks_a_question_once_a_run(journal: Journal) -> None:
    with MockServer(fault=first(9, status(400))) as server:
        engine(journal, remote(server), retry_failed=True, concurrency=1).run(flows("q", "q", "q"))
    assert server.count == 1


def test_retry_after_is_honoured(journal: Journal) -> None:
    with MockServer(fault=first(1, status(429, {"Retry-After": "1"}))) as server:
        engine(journal, remote(server)).run(flows("q"))
    assert server.times[1] - server.times[0] >= 1


def test_waiting_holds_no_slot(journal: Journal) -> None:
    with MockServer(fault=first(1, status(429, {"Retry-After": "1"}))) as server:
        engine(journal, remote(server), concurrency=1).run(flows("slow", "quick"))
    assert server.questions() == ["slow", "quick", "slow"]
    assert server.times[1] - server.times[0] < 0.9


def test_a_cut_answer_is_kept_and_bought_once(journal: Journal) -> None:
    with MockServer(finish="length") as server:

        def flow() -> Flow[str]:
            answer = yield ask("q")
            return str(answer.finish)

        assert values(engine(journal, remote(server)).run([("x", flow)])) == ["length"]
    assert server.count == 1


def test_a_fault_of_the_provider_costs_one_request_and_is_not_remembered(journal: Journal) -> None:
    def script(request: Request) -> Line:
        return f"{1 / (len(provider.requests) > 1 or request.prompt != 'q0')}"

    provider = Scripted(script)
    outcomes = engine(journal, provider, concurrency=1).run(many(3))
    assert values(outcomes) == ["failed: error", "1.0", "1.0"]
    assert (outcomes[0].failures[0].detail, len(provider.requests)) == ("ZeroDivisionError: division by zero", 3)
    assert values(engine(journal, provider).run(many(1))) == ["1.0"]


@given(attempt=st.integers(1, 9), asked=st.none() | st.floats(0, 100))
def test_waits_grow_within_their_bounds_and_never_undercut_the_endpoint(attempt: int, asked: float | None) -> None:
    patience = RetryPolicy(attempts=9, first_wait_seconds=1, longest_wait_seconds=60)
    wait = patience.wait_seconds(attempt, ProviderError("http_429", "", transient=True, retry_after=asked))
    usual = min(2.0 ** (attempt - 1), 60)
    assert max(usual / 2, asked or 0) <= wait <= max(usual, 1.1 * (asked or 0)) + 1e-9
    assert patience.is_over(attempt) == (attempt == 9)


def test_the_key_never_reaches_the_journal(journal: Journal) -> None:
    secret = "sk-very-secret-0000"

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        return status(400, body={"error": {"message": f"not with {secret}"}}) if number == 1 else None

    with MockServer(fault=script, answer=lambda body: f"your key is {secret}") as server:
        outcomes = engine(journal, remote(server, api_key=secret), concurrency=1).run(many(3))
    assert values(outcomes) == ["your key is ***", "failed: http_400", "your key is ***"]
    written = b"".join(path.read_bytes() for path in journal.path.parent.iterdir())
    assert b"your key is ***" in written
    assert secret.encode() not in written


# --- endpoints that serve nobody


@pytest.mark.parametrize("code", [401, 402, 403, 404])
def test_an_endpoint_that_refuses_everybody_stops_the_run_after_what_is_in_flight(journal: Journal, code: int) -> None:
    server = MockServer(fault=lambda number, body: status(code), latency_seconds=0.02)
    with server, pytest.raises(EndpointError, match=f"HTTP {code}") as caught:
        engine(journal, remote(server, api_key="sk-very-secret-0000"), concurrency=4).run(many(100))
    assert server.count <= 4
    assert "\n" not in str(caught.value)
    assert journal.counts()["failures"] == 0


def test_what_was_answered_before_the_stop_comes_along(journal: Journal) -> None:
    with MockServer(fault=asking("q5", status(401))) as server, pytest.raises(EngineStopped) as caught:
        engine(journal, remote(server), concurrency=1).run(many(100))
    assert [outcome.id for outcome in caught.value.outcomes] == [f"q{n}" for n in range(5)]
    assert isinstance(caught.value, EndpointError)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_a_server_that_is_not_there_stops_the_run_within_seconds(journal: Journal) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    started = time.monotonic()
    with pytest.raises(EndpointError, match=f"cannot connect to {url}.*check base_url"):
        Engine(journal, {"teacher": OpenAIProvider(url, "m")}).run(many(100))
    assert 1 < time.monotonic() - started < 5
    assert journal.counts()["answers"] == 0


def test_a_server_that_is_a_moment_late_is_waited_for(journal: Journal) -> None:
    port = free_port()
    late = MockServer(port=port)
    timer = threading.Timer(0.3, late.__enter__)
    timer.start()
    provider = OpenAIProvider(f"http://127.0.0.1:{port}/v1", "m")
    assert values(Engine(journal, {"teacher": provider}).run(many(3))) == [f"answer to q{n}" for n in range(3)]
    timer.join()
    late.__exit__()


def test_a_server_that_goes_away_is_a_failure_that_may_pass(journal: Journal) -> None:
    with MockServer() as server:
        provider = remote(server)

        def flow() -> Flow[str]:
            yield ask("a")
            server.__exit__()
            answer = yield ask("b")
            return f"{answer.reason} {answer.transient} {answer.attempts}"

        [outcome] = engine(journal, provider, attempts=5).run([("x", flow)])
    assert outcome.value == "refused True 5"


def test_an_endpoint_that_asks_for_a_day_stops_the_run(journal: Journal) -> None:
    server = MockServer(fault=lambda number, body: status(429, {"Retry-After": "86400"}))
    with server, pytest.raises(EndpointError, match=r"asks to wait 24\.0 hours"):
        engine(journal, remote(server), concurrency=2).run(many(50))
    assert server.count <= 2


def test_an_error_of_ours_from_a_provider_stops_the_run_as_it_is(journal: Journal) -> None:
    def script(request: Request) -> Line:
        raise ModelError("the weights are gone")

    with pytest.raises(ModelError, match="the weights are gone"):
        engine(journal, Scripted(script)).run(many(5))


def test_a_journal_that_cannot_be_written_stops_the_run_before_anything_is_sent(journal: Journal) -> None:
    provider = Scripted(lambda request: "a")
    with Journal.open(journal.path, read_only=True) as shut, pytest.raises(RunFolderError, match="for reading only"):
        engine(shut, provider).run(many(50))
    assert provider.requests == []


# --- money


def budget(cap_usd: float | None, **options: Any) -> Budget:
    return Budget({"teacher": TokenPrice(input=1.0, output=1000.0)}, cap_usd=cap_usd, **options)


def priced(count: int) -> list[tuple[str, Callable[[], Flow[str]]]]:
    """Each answer costs 0.001 USD a word; ten words are reserved."""
    return [(f"q{n}", lambda n=n: one(f"q{n}", sampling=Sampling(max_tokens=10))) for n in range(count)]


FIVE_WORDS = Scripted(lambda request: "one two three four five", latency_seconds=0.01)


@pytest.mark.parametrize("concurrency", [1, 16])
def test_the_cap_is_never_exceeded_and_used_as_far_as_it_is_safe(journal: Journal, concurrency: int) -> None:
    driven = engine(journal, FIVE_WORDS, concurrency=concurrency, budget=budget(0.1))
    with pytest.raises(BudgetStop, match=r"the budget of 0\.1 USD is used up") as caught:
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


# --- growth


class Pool:
    """A growth whose questions show the pool as it stood; every third proposal brings nothing, some bring three."""

    window = 5

    def __init__(self) -> None:
        self.pool: list[Task] = []
        self.log: list[str] = []

    def propose(self, k: int) -> Flow[list[Task]]:
        self.log.append(f"propose {k}")
        seen = len(self.pool)
        answer = yield ask(f"proposal {k} after {seen}", replica=k, sampling=Sampling(max_tokens=8))
        again = yield ask(f"more of {answer.text}", sampling=Sampling(max_tokens=8))
        return [Task(f"{k}.{n}", f"{again.text} #{n}") for n in range(0 if k % 3 == 2 else 1 + k % 4)]

    def admit(self, k: int, tasks: Sequence[Task]) -> list[Task]:
        self.log.append(f"admit {k}")
        self.pool += tasks
        return list(tasks)


def uneven() -> Scripted:
    return Scripted(lambda request: f"<{request.prompt}>", latency_seconds=lambda _: random.random() / 100)


def test_a_growth_is_the_same_at_any_concurrency_and_latency(tmp_path: Path) -> None:
    grown = []
    for concurrency in (1, 3, 64):
        with Journal.open(tmp_path / f"{concurrency}.sqlite") as journal:
            grown.append(engine(journal, uneven(), concurrency=concurrency).grow(Pool(), 40))
    assert grown[0] == grown[1] == grown[2]
    assert len(grown[0].tasks) == 40


def test_a_larger_target_extends_the_same_tasks(journal: Journal) -> None:
    few = engine(journal, uneven()).grow(Pool(), 17).tasks
    lots = engine(journal, uneven()).grow(Pool(), 60).tasks
    assert (len(few), len(lots)) == (17, 60)
    assert lots[:17] == few


def test_proposals_begin_right_after_the_admission_a_window_before(journal: Journal) -> None:
    growth = Pool()
    engine(journal, uneven()).grow(growth, 12)
    start = [f"propose {k}" for k in range(5)]
    assert growth.log[:5] == start
    assert growth.log[5:11] == ["admit 0", "propose 5", "admit 1", "propose 6", "admit 2", "propose 7"]


class Unhurried(Pool):
    def admit(self, k: int, tasks: Sequence[Task]) -> list[Task]:
        time.sleep(0.01)  # time enough to commit an intent, for whoever would send
        return super().admit(k, tasks)


@pytest.mark.parametrize("target", [1, 2, 7, 30])
def test_replaying_a_growth_asks_nothing(journal: Journal, target: int) -> None:
    before = engine(journal, uneven(), concurrency=1).grow(Pool(), target)
    provider = uneven()
    again = engine(journal, provider)
    assert again.grow(Unhurried(), target) == before
    assert (provider.requests, again.tally.asked) == ([], 0)


def test_a_growth_to_nothing_asks_nothing(journal: Journal) -> None:
    provider = uneven()
    assert engine(journal, provider).grow(Pool(), 0).tasks == []
    assert provider.requests == []


def test_a_growth_keeps_every_slot_busy(journal: Journal) -> None:
    with MockServer(latency_seconds=0.05) as server:
        engine(journal, remote(server), concurrency=4).grow(Pool(), 20)
    assert server.most_in_flight == 4


class Barren(Pool):
    def __init__(self, candidates: int) -> None:
        super().__init__()
        self.candidates = candidates

    def propose(self, k: int) -> Flow[list[Task]]:
        answer = yield ask("again", replica=k)
        return [Task("t", answer.text)] * self.candidates if isinstance(answer, Completion) else []

    def admit(self, k: int, tasks: Sequence[Task]) -> list[Task]:
        return []


@pytest.mark.parametrize(("candidates", "found"), [(0, "no candidates"), (2, "78 candidates, all refused")])
def test_a_growth_that_brings_nothing_new_stops_and_says_so(journal: Journal, candidates: int, found: str) -> None:
    with pytest.raises(StageIncomplete, match=f"0 of 9 tasks after 39 proposals: the last 39 .*{found}.*more seeds"):
        engine(journal).grow(Barren(candidates), 9)


def test_a_failure_that_may_pass_stops_a_growth_and_the_next_run_goes_on(journal: Journal) -> None:
    with MockServer(fault=asking("proposal 6 ", status(503))) as server, pytest.raises(StageIncomplete) as caught:
        engine(journal, remote(server), attempts=2).grow(Pool(), 20)
    assert isinstance(caught.value, EngineStopped)
    assert "was not answered in 2 attempts (http_503: HTTP 503" in str(caught.value)
    grown = caught.value.grown
    assert grown is not None
    assert grown.requests == 6
    with MockServer() as server:
        whole = engine(journal, remote(server)).grow(Pool(), 20).tasks
    assert whole[: len(grown.tasks)] == grown.tasks
    assert len(whole) == 20


def test_a_growth_that_runs_out_of_money_brings_what_it_has_and_goes_on_with_more(journal: Journal) -> None:
    with pytest.raises(EngineStopped) as caught:
        engine(journal, uneven(), budget=budget(0.1)).grow(Pool(), 20)
    assert isinstance(caught.value, BudgetStop)
    assert caught.value.grown is not None
    some = caught.value.grown.tasks
    assert 0 < len(some) < 20
    assert engine(journal, uneven()).grow(Pool(), 20).tasks[: len(some)] == some


def test_ctrl_c_in_a_growth_brings_what_it_has_and_the_next_run_goes_on(journal: Journal) -> None:
    def script(request: Request) -> Line:
        if "more of <proposal 7 " in str(request.prompt):
            signal.raise_signal(signal.SIGINT)
        return f"<{request.prompt}>"

    with pytest.raises(Interrupted, match="of 20 are finished and kept") as caught:
        engine(journal, Scripted(script, latency_seconds=0.005)).grow(Pool(), 20)
    assert isinstance(caught.value, EngineStopped)
    assert caught.value.grown is not None
    some = caught.value.grown.tasks
    assert 0 < len(some) < 20
    assert engine(journal, uneven()).grow(Pool(), 20).tasks[: len(some)] == some


def test_a_permanent_failure_is_the_growths_own_affair(journal: Journal) -> None:
    server = MockServer(fault=lambda number, body: status(400))
    with server, pytest.raises(StageIncomplete, match="no candidates; last: http_400: HTTP 400: this is a 400"):
        engine(journal, remote(server)).grow(Barren(1), 9)


def test_a_proposal_that_raises_is_empty_and_remembered(journal: Journal) -> None:
    class Fragile(Pool):
        def propose(self, k: int) -> Flow[list[Task]]:
            answer = yield ask("again", replica=k)
            return [Task(str(10 // (k - 2)), answer.text)]

    grown = engine(journal).grow(Fragile(), 5)
    assert (len(grown.tasks), grown.requests, grown.candidates) == (5, 6, 5)
    assert grown.errors == ("ZeroDivisionError: integer division or modulo by zero",)


# --- progress


class Recorder:
    def __init__(self) -> None:
        self.said: list[tuple[float, float | None, str]] = []

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self.said.append((done, total, note))


def test_progress_is_told_with_what_is_in_flight(journal: Journal) -> None:
    recorder = Recorder()
    slow = Scripted(lambda request: "a b c", latency_seconds=0.05)
    engine(journal, slow, concurrency=4, progress=recorder).run(many(40))
    assert recorder.said[-1][:2] == (40, 40)
    assert any("in flight" in note and "tok/s" in note for _, _, note in recorder.said)
    assert [done for done, _, _ in recorder.said] == sorted(done for done, _, _ in recorder.said)


def test_after_ctrl_c_progress_says_what_is_waited_for(journal: Journal) -> None:
    def script(request: Request) -> Line:
        if request.prompt == "q3":
            signal.raise_signal(signal.SIGINT)
        return "fine"

    recorder = Recorder()
    with pytest.raises(Interrupted):
        engine(journal, Scripted(script, latency_seconds=0.05), progress=recorder, concurrency=4).run(many(9))
    assert any(AGAIN in note for _, _, note in recorder.said)


# --- a model in this process


def test_batches_hold_what_is_in_flight_of_one_kind_longest_first(journal: Journal) -> None:
    batches: list[list[str]] = []

    def model(requests: Sequence[Request]) -> list[Reply]:
        batches.append([request.prompt or "" for request in requests])
        return [Reply(text=(request.prompt or "").upper()) for request in requests]

    def hot(prompt: str) -> tuple[str, Callable[[], Flow[str]]]:
        return prompt, lambda: one(prompt, sampling=Sampling(temperature=1))

    work = [*flows("a", "bbb", "cc"), hot("d"), *flows("eeee"), hot("ff")]
    outcomes = engine(journal, Batched(model, Endpoint(model="m"), batch=4)).run(work)
    assert values(outcomes) == ["A", "BBB", "CC", "D", "EEEE", "FF"]
    assert batches == [["eeee", "bbb", "cc", "a"], ["ff", "d"]]


def test_batches_are_the_same_in_whatever_order_questions_come(tmp_path: Path) -> None:
    seen = []
    for number in range(2):
        batches: list[list[str]] = []

        def model(requests: Sequence[Request], batches: list[list[str]] = batches) -> list[Reply]:
            batches.append([request.prompt or "" for request in requests])
            return [Reply(text="x")] * len(requests)

        work = many(8)
        random.Random(number).shuffle(work)
        with Journal.open(tmp_path / f"{number}.sqlite") as journal:
            engine(journal, Batched(model, Endpoint(model="m"), batch=8)).run(work)
        seen.append(batches)
    assert seen[0] == seen[1]


def test_one_request_of_a_batch_may_fail_alone(journal: Journal) -> None:
    def model(requests: Sequence[Request]) -> list[Reply | ProviderError]:
        return [ProviderError("too_long", "x") if r.prompt == "q1" else Reply(text="a") for r in requests]

    assert values(engine(journal, Batched(model, Endpoint(model="m"))).run(many(3))) == ["a", "failed: too_long", "a"]


@pytest.mark.parametrize(
    ("raised", "kind", "line"),
    [
        (ModelError("the adapter does not fit"), ModelError, "the adapter does not fit"),
        (RuntimeError("out of memory"), EndpointError, "the model failed: RuntimeError: out of memory"),
        (None, EndpointError, "gave 0 replies to 1 requests"),
    ],
)
def test_a_model_that_fails_stops_the_run(
    journal: Journal, raised: Exception | None, kind: type[DistillError], line: str
) -> None:
    def model(requests: Sequence[Request]) -> list[Reply]:
        if raised is not None:
            raise raised
        return []

    provider = Batched(model, Endpoint(model="m"))
    for _ in range(2):
        with pytest.raises(kind, match=line):
            engine(journal, provider, concurrency=1).run(many(5))


def test_a_batched_model_serves_one_engine_after_another(tmp_path: Path) -> None:
    threads = set()

    def model(requests: Sequence[Request]) -> list[Reply]:
        threads.add(threading.current_thread())
        return [Reply(text="x", loglikelihood=-1.0)] * len(requests)

    provider = Batched(model, Endpoint(model="m"))
    for number in range(3):
        with Journal.open(tmp_path / f"{number}.sqlite") as journal:
            assert values(engine(journal, provider).run(many(50))) == ["x"] * 50
    time.sleep(0.05)
    assert [thread for thread in threads if thread.is_alive()] == []


def test_a_script_plays_its_lines_and_then_says_that_it_is_over(journal: Journal) -> None:
    provider = Scripted(["one", ProviderError("http_503", "busy", transient=True), Reply(text="two", finish="length")])
    driven = engine(journal, provider, concurrency=1)
    assert values(driven.run(many(2))) == ["one", "two"]
    assert driven.tally.completion_tokens == 1
    with pytest.raises(EndpointError, match="the script ended after 3 lines"):
        driven.run(flows("another"))


# --- the end of a process

CHILD = """
import sys
from pathlib import Path
from distill.engine import Stopped
from distill.engine.drive import Engine
from distill.journal import Journal
from distill.providers.openai import OpenAIProvider
from distill.types import Completion, Endpoint, Request

def flow(number):
    answer = yield Request(role="teacher", prompt=f"q{number}")
    return answer.text

url, path, count, concurrency = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
flows = [(f"q{n}", lambda n=n: flow(n)) for n in range(count)]
provider = OpenAIProvider(url, "m", endpoint=Endpoint(model="m"))
sys.stderr.write("ready\\n")
sys.stderr.flush()
with Journal.open(path) as journal:
    engine = Engine(journal, {"teacher": provider}, concurrency=concurrency)
    try:
        outcomes, code = engine.run(flows), 0
    except Stopped as stop:
        outcomes, code = stop.outcomes, stop.exit_code
        sys.stderr.write(f"{stop}\\n")
sys.stdout.write("".join(f"{outcome.id} {outcome.value}\\n" for outcome in outcomes))
sys.exit(code)
"""


def child(server: MockServer, path: Path, count: int, concurrency: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", CHILD, server.url, str(path), str(count), str(concurrency)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def answers(count: int) -> str:
    return "".join(f"q{n} answer to q{n}\n" for n in range(count))


def test_killed_runs_go_on_where_they_were_and_buy_nothing_twice_but_what_was_in_flight(tmp_path: Path) -> None:
    path, needed, slots, kills = tmp_path / "journal.sqlite", 200, 10, 4
    with MockServer(latency_seconds=lambda _: random.uniform(0, 0.04)) as server:
        for _ in range(kills):
            before, more = server.count, random.randint(1, 60)
            process = child(server, path, needed, slots)
            wait_until(lambda before=before, more=more: server.count >= before + more)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        time.sleep(0.1)
        process = child(server, path, needed, slots)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, answers(needed)), err
        assert needed <= server.count <= needed + kills * slots
        with Journal.open(path, read_only=True) as journal:
            assert journal.counts()["answers"] == needed
            assert journal.counts()["intents"] >= server.count


def test_ctrl_c_finishes_what_is_in_flight_and_keeps_what_is_finished(tmp_path: Path) -> None:
    with MockServer(latency_seconds=0.2) as server:
        process = child(server, tmp_path / "journal.sqlite", 500, 5)
        wait_until(lambda: server.count >= 12)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 130, err
        assert out == answers(server.count)
        assert "Traceback" not in err
        assert f"interrupted: {server.count} of 500" in err
        process = child(server, tmp_path / "journal.sqlite", server.count, 5)
        before = server.count
        assert process.communicate(timeout=10)[0] == answers(before)
        assert server.count == before


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    with MockServer(fault=lambda number, body: HANG if number >= 8 else None) as server:
        process = child(server, tmp_path / "journal.sqlite", 50, 4)
        wait_until(lambda: server.count >= 12)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)
        assert (process.returncode, out) == (130, answers(8)), err
        assert "Traceback" not in err
