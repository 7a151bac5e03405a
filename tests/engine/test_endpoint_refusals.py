"""Refusals that may concern one request or all: one prompt stops no run, and a dead key costs none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.engine import StoppedByEndpoint
from distill.engine.journal.records import failed
from distill.engine.journal.store import Journal
from distill.engine.mock_server import RESET, Fault, MockServer, asking, first, question, status
from distill.engine.providers.refusals import message_of
from distill.types import Endpoint, Failure, Flow, Task
from tests.engine.test_waits import Notes
from tests.support.engine.engines import ask, engine, flows, many, remote, values

FIREWALL = """<!DOCTYPE html><html><head><style>b > i {color: red}</style><title>Attention!</title></head>
<body><script>track("<b>")</script><h1>Sorry, you have been blocked</h1></body></html>"""
GEMINI = [{"error": {"code": 400, "message": "API key not valid. Please pass one.", "status": "INVALID_ARGUMENT"}}]
REFUSALS = {
    "key": (status(401, body={"error": {"message": "Incorrect API key provided"}}), "Incorrect API key provided"),
    "credit": (status(402, body={"detail": "Insufficient balance"}), "Insufficient balance"),
    "firewall": (status(403, body=FIREWALL), "Attention! Sorry, you have been blocked"),
    "rights": (status(403, body={"message": "Forbidden"}), "Forbidden"),
    "model": (status(404, body={"error": "model 'm' not found"}), "model 'm' not found"),
    "path": (status(404, body={"detail": "Not Found"}), "Not Found"),
    "Gemini": (status(400, body=GEMINI), "API key not valid. Please pass one."),
    "xAI": (status(400, body={"code": "Client specified an invalid argument", "error": "Incorrect API key provided"}),
            "Incorrect API key provided"),
    "Baidu": (status(200, body={"error": {"code": 110, "msg": "Access token invalid or no longer valid"}}),
              "Access token invalid or no longer valid"),
    "one-api": (status(500, body={"error": {"message": "无效的令牌 (request id: 7)"}}), "无效的令牌 (request id: 7)"),
    "LM Studio": (status(200, body={"error": "Unexpected endpoint or method. (POST /completions)"}),
                  "Unexpected endpoint or method. (POST /completions)"),
    "Anthropic": (status(400, body={"error": {"message": "Your credit balance is too low"}}),
                  "Your credit balance is too low"),
}  # fmt: skip
"""What may concern every request, with its message in plain words."""
each_refusal = pytest.mark.parametrize(("fault", "message"), REFUSALS.values(), ids=REFUSALS)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


def permanent(journal: Journal) -> int:
    return len(journal._select("SELECT key FROM failures WHERE permanent"))


@each_refusal
def test_one_prompt_that_is_refused_fails_alone_and_is_asked_again(
    journal: Journal, fault: Fault, message: str
) -> None:
    with MockServer(fault=asking("q7", fault)) as server:
        outcomes = engine(journal, remote(server), concurrency=4).run(many(30))
        assert [outcome.value for outcome in outcomes if outcome.failures] == [outcomes[7].value]
        [failure] = outcomes[7].failures
        assert (failure.transient, failure.detail) == (True, f"HTTP {fault.code}: {message}")
        assert (server.count, permanent(journal)) == (30, 0)
        engine(journal, remote(server)).run(many(30))
        assert server.count == 31


@each_refusal
def test_a_refusal_of_everything_stops_the_run_and_mended_the_same_command_goes_on(
    journal: Journal, fault: Fault, message: str
) -> None:
    with MockServer(fault=lambda number, body: fault, latency_seconds=0.01) as server:
        with pytest.raises(StoppedByEndpoint) as caught:
            engine(journal, remote(server), concurrency=4).run(many(100))
        assert server.count <= 4
    assert f"HTTP {fault.code}: {message}; " in str(caught.value)
    assert permanent(journal) == 0
    with MockServer() as server:
        assert values(engine(journal, remote(server)).run(many(100))) == [f"answer to q{n}" for n in range(100)]


@pytest.mark.parametrize(
    "fault",
    [
        status(429, body=[{"error": {"code": 429, "message": "You exceeded your current quota, check your plan"}}]),
        status(429, body={"error": {"message": "Rate limit reached for this API key, try again in 2 s"}}),
        status(503, body={"error": {"message": "The model m is not available yet: no route to it"}}),
        status(500, body={"detail": "cannot reach the authentication service"}),
        status(200, body={"error": {"message": "upstream broke"}}),
    ],
)
def test_what_may_pass_is_no_refusal(journal: Journal, fault: Fault) -> None:
    with MockServer(fault=first(2, fault)) as server:
        assert values(engine(journal, remote(server)).run(flows("q"))) == ["answer to q"]
        assert server.count == 3


def test_the_first_prompt_that_is_refused_waits_for_those_in_flight_beside_it(journal: Journal) -> None:
    latency: Callable[[int], float] = lambda number: 0.0 if number == 0 else 0.2  # noqa: E731
    with MockServer(fault=first(1, status(403)), latency_seconds=latency) as server:
        outcomes = engine(journal, remote(server), concurrency=3).run(many(9))
    assert [outcome.id for outcome in outcomes if outcome.failures] == [server.questions()[0]]
    assert server.times[3] - server.times[0] > 0.15  # nothing more is sent while the endpoint is in doubt


def test_a_transient_failure_beside_a_refusal_is_no_answer(journal: Journal) -> None:
    with MockServer(fault=lambda number, body: RESET if number % 2 else status(401)) as server:
        with pytest.raises(StoppedByEndpoint, match="HTTP 401"):
            engine(journal, remote(server), concurrency=2).run(many(50))
        assert server.count <= 3


@pytest.mark.parametrize("code", [401, 402, 403, 404])
def test_answers_in_the_journal_count_until_most_of_the_last_twenty_are_refused(journal: Journal, code: int) -> None:
    with MockServer() as server:
        engine(journal, remote(server)).run(many(3))
    with MockServer(fault=lambda number, body: status(code)) as server:
        assert [bool(one.failures) for one in engine(journal, remote(server)).run(many(13))] == [False] * 3 + [
            True
        ] * 10
        assert server.count == 10
        with pytest.raises(StoppedByEndpoint, match=f"HTTP {code}"):
            engine(journal, remote(server), concurrency=4).run(many(300))
        assert server.count <= 10 + 11 + 4
    assert permanent(journal) == 0


def test_a_key_that_dies_in_the_middle_stops_the_run_soon_and_a_minority_of_refusals_never(journal: Journal) -> None:
    with MockServer(fault=lambda number, body: status(401) if number % 5 > 2 else None) as server:
        assert len(engine(journal, remote(server), concurrency=1).run(many(100))) == 100
    with MockServer(fault=lambda number, body: status(401) if number >= 30 else None) as server:
        with pytest.raises(StoppedByEndpoint):
            engine(journal, remote(server), concurrency=4).run(flows(*(f"new {n}" for n in range(300))))
        assert server.count <= 30 + 11 + 4


@pytest.mark.parametrize(
    "body",
    [
        lambda number: {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."}},
        lambda number: {"detail": [{"loc": ["body", "n"], "msg": "field required", "input": f"q{number}"}]},
        lambda number: {"message": f"no such deployment (request id: 2026{number:04}ab)"},
    ],
)
def test_the_first_twenty_that_all_fail_alike_stop_the_run_and_are_asked_again(
    journal: Journal, body: Callable[[int], Any]
) -> None:
    with MockServer(fault=lambda number, _: status(422, body=body(number))) as server:
        with pytest.raises(StoppedByEndpoint, match="the first 20 requests to the teacher failed alike: HTTP 422: "):
            engine(journal, remote(server), concurrency=4).run(many(300))
        assert server.count <= 20 + 2 * 4
    assert permanent(journal) == 0
    with MockServer() as server:
        assert values(engine(journal, remote(server)).run(many(30))) == [f"answer to q{n}" for n in range(30)]


@pytest.mark.parametrize(
    "fault",
    [
        lambda number, body: status(400) if number != 11 else None,  # one answer
        lambda number, body: status(400 + 13 * (number == 12)),  # another status
        lambda number, body: status(400, body=f"{'long' if number % 2 else 'odd'} prompt"),  # other words
    ],
)
def test_failures_that_are_not_all_alike_stop_nothing(journal: Journal, fault: Any) -> None:
    with MockServer(fault=fault) as server:
        assert len(engine(journal, remote(server), concurrency=1).run(many(40))) == 40
    assert permanent(journal) >= 39


def test_a_journal_that_holds_refused_keys_as_permanent_is_asked_again(journal: Journal) -> None:
    old = {
        "q0": ("http_400", "HTTP 400: [{'error': {'code': 400, 'message': 'API key not valid. Please pass a valid"),
        "q1": ("http_401", "HTTP 401: who are you?"),
        "q2": ("http_404", "HTTP 404: Not Found"),
        "q3": ("http_403", "HTTP 403: blocked"),
        "q4": ("http_400", "HTTP 400: maximum context length is 2048 tokens"),
        "q5": ("http_413", "HTTP 413: too large"),
    }
    with MockServer(fault=lambda number, body: status(400)) as server:  # so that every key is in the journal
        engine(journal, remote(server)).run(flows(*old))
    keys = dict(journal._select("SELECT json_extract(request, '$.prompt'), key FROM failures"))
    for prompt, (reason, detail) in old.items():
        failure = Failure(key=keys[prompt], reason=reason, detail=detail, transient=False, attempts=1)
        journal.write(failed(failure, json.dumps({"role": "teacher", "prompt": prompt}), Endpoint(model="m"))).result()
    with MockServer() as server:
        outcomes = engine(journal, remote(server)).run(flows(*old))
        assert sorted(server.questions()) == ["q0", "q1", "q2", "q3"]
    assert values(outcomes[4:]) == ["failed: http_400", "failed: http_413"]


def test_a_growth_goes_on_where_a_firewall_refuses_one_text(journal: Journal) -> None:
    class Pool:
        window = 4

        def propose(self, k: int) -> Flow[list[Task]]:
            answer = yield ask(f"proposal {k}")
            return [Task(str(k), answer.text)] if hasattr(answer, "text") else []

        def admit(self, k: int, tasks: Any) -> list[Task]:
            return list(tasks)

    for _ in range(2):
        with MockServer(fault=asking("proposal 2", status(403, body=FIREWALL))) as server:
            grown = engine(journal, remote(server)).grow(Pool(), 6)
            assert [task.id for task in grown.tasks] == ["0", "1", "3", "4", "5", "6"]
    assert server.questions() == ["proposal 2"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(403, body={"message": "Forbidden"}), "HTTP 403: Forbidden; check the key"),
        (status(404, body={"detail": "Not Found"}), "HTTP 404: Not Found; check base_url, which usually ends in /v1"),
        (status(400, body={"error": "unknown model q"}), 'HTTP 400: unknown model q; check the name of the model, "m"'),
        (status(200, body=FIREWALL), "check base_url, which usually ends in /v1"),
        (status(400, body={"message": "This model only supports streaming"}), "streaming; it answers with a stream"),
        (status(418, body={"msg": "I am a teapot"}), "HTTP 418: I am a teapot"),
        (status(503, body={"error": ["overloaded", "queue full"]}), "HTTP 503: overloaded; queue full"),
    ],
)
def test_the_progress_line_shows_the_last_fault_and_a_hint(journal: Journal, fault: Fault, words: str) -> None:
    notes = Notes()
    with MockServer(fault=asking("q9", fault), latency_seconds=0.02) as server:
        engine(journal, remote(server), concurrency=1, attempts=2, progress=notes).run(many(10))
    assert f"last fault: {words}" in notes.notes[-1] or words in notes.notes[-1].partition("last fault: ")[2]
    assert "last fault" not in notes.notes[0]


SHAPES = {
    '{"error": {"message": "plain", "code": "c"}}': "plain",
    '[{"error": {"message": "first"}}, {"error": {"message": "second"}}]': "first; second",
    '{"error": "text"}': "text",
    '{"error": {"error": {"message": "inner"}}}': "inner",
    '{"error": {"message": {"message": "deeper"}}}': "deeper",
    '{"error": {"message": "{\\"error\\": {\\"message\\": \\"in JSON\\"}}"}}': "in JSON",
    '{"detail": [{"loc": ["body", "messages", 0], "msg": "field required", "input": {"a": 1}}]}':
        "body.messages.0: field required",
    '{"detail": {"reason": "busy"}}': "busy",
    '{"result": null, "success": false, "errors": [{"code": 7003, "message": "no route"}]}': "no route",
    '{"errors": {"model": ["is missing", "is unknown"]}}': "model: is missing; is unknown",
    '{"msg": "short"}': "short",
    '{"error_code": 110, "error_msg": "expired"}': "expired",
    '{"error": true, "reason": "why"}': "why",
    '{"Message": "capital"}': "capital",
    '{"base_resp": {"status_code": 1004, "status_msg": "login fail"}}': "base_resp: login fail",
    '{"fault": {"faultstring": "SOAP", "detail": {"errorcode": "x"}}}': "fault: SOAP",
    '{"error": {"message": "Provider returned error", "metadata": {"raw": "{\\"detail\\": \\"too long\\"}"}}}':
        "Provider returned error: too long",
    '{"code": 7, "kind": {"a": [1, {"b": null, "c": "d"}]}}': "code: 7, kind: a: 1; c: d",
    '<?xml version="1.0"?><Error><Code>Denied</Code><Message>a &amp; b</Message></Error>': "Denied a & b",
    "<e><![CDATA[not <b>this</b>]]></e>": "not this",
    FIREWALL: "Attention! Sorry, you have been blocked",
    "upstream connect error": "upstream connect error",
    '"a text"': "a text",
    "[]": "nothing",
    "{}": "nothing",
    "": "nothing",
    "[" * 5000: "[" * 159 + "…",
    "[" * 50 + '"deep"' + "]" * 50: "nothing",
}  # fmt: skip
"""Bodies of errors and their messages."""


def test_a_body_of_any_shape_gives_plain_words(journal: Journal) -> None:
    bodies = list(SHAPES)
    fault = lambda number, body: status(400, body=bodies[int(question(body)[1:])])  # noqa: E731
    with MockServer() as server:
        engine(journal, remote(server)).run(flows("hello"))
    with MockServer(fault=fault) as server:
        outcomes = engine(journal, remote(server)).run(many(len(bodies)))
    details = [outcome.failures[0].detail.removeprefix("HTTP 400: ") for outcome in outcomes]
    assert dict(zip(bodies, details, strict=True)) == SHAPES


def test_codes_are_read_beside_the_message() -> None:
    assert message_of('{"code": "InvalidApiKey", "message": "no"}') == ("no", "InvalidApiKey")
    assert message_of(json.dumps(GEMINI))[1].split() == ["400", "INVALID_ARGUMENT"]
