"""The engine: flows and growths driven over real journals, scripted providers and a real server that misbehaves."""

from __future__ import annotations

import errno
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from distill.engine import StoppedAtMiss, Tally
from distill.engine.journal.store import Journal
from distill.engine.mock_server import (
    MockServer,
)
from distill.engine.progress import AGAIN
from distill.engine.providers import ProviderError, Reply
from distill.engine.providers.scripted import Line, Scripted
from distill.errors import (
    DistillError,
    EndpointError,
    Interrupted,
    ModelError,
    RecipeError,
    RunFolderError,
)
from distill.models.in_process import Batched
from distill.types import Completion, Endpoint, Flow, Request, Sampling
from tests.support.engine.engines import ask, engine, flows, many, one, remote, values


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


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


def test_an_engine_that_sends_nothing_reports_the_first_misses(journal: Journal) -> None:
    engine(journal).run(flows("a", "c"))
    before, misses = journal.counts(), []
    offline = engine(journal, on_miss=lambda flow, question: misses.append((flow, question.request.prompt)))
    with pytest.raises(StoppedAtMiss) as caught:
        offline.run(flows("a", "b", "c", "d"))
    assert [outcome.id for outcome in caught.value.outcomes] == ["a", "c"]
    assert misses == [("b", "b"), ("d", "d")]
    assert (offline.tally.asked, journal.counts()) == (0, before)
    assert values(offline.run(flows("c"))) == ["answer to c"]


def test_the_same_question_in_flight_is_asked_once(journal: Journal) -> None:
    provider = Scripted(lambda request: "a", latency_seconds=0.05)
    assert values(engine(journal, provider).run(flows("q", "q", "q"))) == ["a"] * 3
    assert len(provider.requests) == 1


def test_replicas_are_asked_apart(journal: Journal) -> None:
    def flow() -> Flow[int]:
        answers = yield tuple(ask("q", replica=n) for n in range(3))
        return len({answer.key for answer in answers})

    assert values(engine(journal).run([("x", flow)])) == [3]


@pytest.mark.slow
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
        assert outcome.value == "odd \ufffd text"
        assert engine(journal, remote(server)).run(flows("q")) == [outcome]


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


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()])
def test_a_fault_of_the_machine_inside_a_flow_stops_the_run_and_is_no_failure(
    journal: Journal, error: Exception
) -> None:
    def broken() -> Flow[str]:
        yield ask("q0")
        raise error

    with pytest.raises(RunFolderError, match="run the same command again"):
        engine(journal).run([("broken", broken), *many(3)])
    assert journal.counts()["failures"] == 0
    assert values(engine(journal).run(many(3))) == [f"answer to q{number}" for number in range(3)]
