"""The probe: what each behaviour of a real server on loopback is called, and that it costs little and tells nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from distill.engine import probe
from distill.engine.mock_server import HANG, Fault, MockServer, Script, never, status
from distill.engine.probe import COUNT_TOKENS, PARAMETERS, Findings, Probe
from distill.errors import EndpointError, RecipeError
from distill.recipe import Recipe, Teacher
from distill.types import Sampling
from tests.support.engine.probed_model import KEY, Model, odd


def refusing(parameter: str, value: Any = None) -> Script:
    """Answers 400 to a body that has the parameter, or the parameter with that value."""

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        bad = parameter in body and (value is None or body[parameter] == value)
        said = {"error": {"message": f"{parameter} is not supported", "type": "invalid_request_error"}}
        return status(400, body=said) if bad else None

    return script


def without_completions(number: int, body: dict[str, Any]) -> Fault | None:
    return status(404) if "prompt" in body else None


def probed(answer: Callable[[Mapping[str, Any]], Any], fault: Script = never) -> tuple[Findings, MockServer]:
    with MockServer(answer=answer, fault=fault) as server:
        return probe.probe(server.url, "imaginary", api_key=KEY, timeout_seconds=10), server


# What each behaviour is called


def test_an_endpoint_that_honours_everything_is_asked_twelve_times():
    findings, server = probed(Model())
    assert odd(findings) == {}
    assert [found.parameter for found in findings.probes] == list(PARAMETERS)
    assert findings.calls == server.count == 12
    assert findings.prompt_tokens > 0
    assert 0 < findings.completion_tokens < 400


@pytest.mark.parametrize("parameter", ["seed", "stop", "max_tokens", "system", "response_format", "top_logprobs"])
def test_one_ignored_parameter_is_the_only_one_found(parameter):
    findings, _ = probed(Model(parameter))
    assert odd(findings) == {parameter: "ignored"}


def test_ignored_logprobs_have_no_alternatives_either():
    assert odd(probed(Model("logprobs"))[0]) == {"logprobs": "ignored", "top_logprobs": "ignored"}


def test_an_endpoint_that_always_draws_ignores_temperature():
    assert odd(probed(Model("temperature"))[0]) == {"temperature": "ignored"}


def test_an_endpoint_that_always_draws_and_knows_no_seed_ignores_both():
    assert odd(probed(Model("temperature", "seed"))[0]) == {"temperature": "ignored", "seed": "ignored"}


def test_of_an_endpoint_that_is_always_greedy_nothing_is_said_about_seeds():
    assert odd(probed(Model(greedy=True))[0]) == {"temperature": "ignored", "seed": "unclear"}


@pytest.mark.parametrize("parameter", ["temperature", "seed", "stop", "response_format", "top_logprobs"])
def test_one_refused_parameter_is_the_only_one_found(parameter):
    findings, _ = probed(Model(), refusing(parameter))
    assert odd(findings) == {parameter: "refused"}
    assert f"HTTP 400: {parameter} is not supported" in {found.evidence for found in findings.probes}


def test_refused_logprobs_leave_the_rest_honoured():
    findings, _ = probed(Model(), refusing("logprobs"))
    assert odd(findings) == {"logprobs": "refused", "top_logprobs": "refused"}


def test_where_max_tokens_is_refused_its_newer_name_is_used():
    def script(number: int, body: dict[str, Any]) -> Fault | None:
        return refusing("max_tokens")(number, body) if "messages" in body else None

    findings, server = probed(Model(), script)
    assert odd(findings) == {"max_tokens": "refused"}
    chats = [body for body in server.bodies if "messages" in body]
    assert all("max_completion_tokens" in body for body in chats[1:])


def test_a_refused_system_message_is_refused():
    def script(number: int, body: dict[str, Any]) -> Fault | None:
        turns = body.get("messages", [])
        return status(400) if turns and turns[0]["role"] == "system" else None

    assert odd(probed(Model(), script)[0]) == {"system": "refused"}


def test_raw_completions_that_are_not_there_are_refused():
    findings, _ = probed(Model(), without_completions)
    assert odd(findings) == {"completions": "refused"}
    assert findings.probes[-1].evidence == "HTTP 404: this is a 404"


def test_a_system_message_that_is_only_counted_is_honoured():
    findings, _ = probed(Model(obeys=False))
    assert odd(findings) == {}
    assert "prompt tokens" in next(found.evidence for found in findings.probes if found.parameter == "system")


def test_a_system_message_without_a_trace_and_without_counts_is_unclear():
    assert odd(probed(Model(obeys=False, usage=False))[0]) == {"system": "unclear"}


def test_without_token_counts_the_limits_show_in_the_text():
    assert odd(probed(Model(usage=False))[0]) == {}
    assert odd(probed(Model("max_tokens", usage=False))[0]) == {"max_tokens": "ignored"}


def test_a_cache_in_front_of_the_endpoint_does_not_hide_that_seeds_are_ignored():
    model, kept = Model("seed"), {}

    def cached(body: Mapping[str, Any]) -> Any:
        return kept.setdefault(json.dumps(body, sort_keys=True), model(body))

    assert odd(probed(cached)[0]) == {"seed": "ignored"}


def test_empty_answers_show_nothing():
    def silent(body: Mapping[str, Any]) -> dict[str, Any]:
        return {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}

    found = odd(probed(silent)[0])
    assert {found[name] for name in ("temperature", "seed", "stop", "max_tokens", "response_format")} == {"unclear"}


# What it costs, and what it never tells


@pytest.mark.parametrize(
    "fault",
    [
        refusing("temperature"), refusing("seed"), refusing("logprobs"), refusing("temperature", 1),
        lambda number, body: status(429, {"Retry-After": "0.01"}) if number % 2 else None,
    ],
)  # fmt: skip
def test_no_behaviour_is_asked_more_often_than_the_bound(fault):
    findings, server = probed(Model("temperature"), fault)
    assert findings.calls == server.count <= probe.MOST_CALLS
    assert max(body.get("max_tokens", 0) for body in server.bodies) <= COUNT_TOKENS


def test_no_two_calls_are_made_at_once():
    assert probed(Model())[1].most_in_flight == 1


def test_a_server_error_is_no_refusal():
    findings, _ = probed(Model(), lambda number, body: status(500) if "stop" in body else None)
    assert odd(findings) == {"stop": "unclear"}


def test_the_key_is_sent_and_kept_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))

    def telltale(number: int, body: dict[str, Any]) -> Fault | None:
        return status(400, body=f"bad stop for key {KEY}") if "stop" in body else None

    findings, server = probed(Model(), telltale)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert findings.verdict("stop") == "refused"
    assert KEY not in probe.save(findings).read_text() + "\n".join(probe.table(findings)) + repr(findings)


@pytest.mark.parametrize("code", [401, 402, 403, 404, 500])
def test_an_endpoint_that_answers_nothing_is_one_error(code):
    with pytest.raises(EndpointError) as caught:
        probed(Model(), lambda number, body: status(code, body=f"no, {KEY}"))
    assert f"HTTP {code}" in str(caught.value)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_refuses_a_plain_question_is_one_error():
    with pytest.raises(EndpointError, match="refuses a plain question: HTTP 400"):
        probed(Model(), lambda number, body: status(400))


@pytest.mark.parametrize("code", [400, 500])
def test_an_endpoint_that_answers_once_alone_is_one_error(code):
    with pytest.raises(EndpointError, match=f"HTTP {code}"):
        probed(Model(), lambda number, body: status(code) if number else None)


def test_an_endpoint_that_hangs_is_given_up_at_once():
    with (
        MockServer(answer=Model(), fault=lambda number, body: HANG if number else None) as server,
        pytest.raises(EndpointError, match=r"no answer within 0\.2 s"),
    ):
        probe.probe(server.url, "imaginary", timeout_seconds=0.2)
    assert server.count == 2


def test_what_a_server_says_cannot_steer_the_terminal():
    findings, _ = probed(Model(), lambda number, body: status(400, body="\x1b[2Jgone") if "stop" in body else None)
    assert "\x1b" not in "".join(probe.table(findings))


# Keeping


def some(**verdicts: str) -> Findings:
    probes = tuple(Probe(name, verdict, "seen") for name, verdict in verdicts.items())
    return Findings(
        url="http://127.0.0.1:8000/v1", model="m", date="2026-01-02T03:04:05+00:00",
        probes=probes, calls=12, prompt_tokens=300, completion_tokens=200,
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_kept_is_read_back_by_any_spelling_of_the_address(cache):
    probe.save(some(stop="ignored"))
    assert probe.load("http://user:word@127.0.0.1:8000/v1/?key=1", "m") == some(stop="ignored")


def test_each_model_and_address_has_its_own_findings(cache):
    probe.save(some(stop="ignored"))
    assert probe.load("http://127.0.0.1:8000/v1", "other") is None
    assert probe.load("http://127.0.0.1:8001/v1", "m") is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"url": 1}', b"\xff\xfe", "[" * 100_000],
)
def test_a_damaged_file_counts_as_none(cache, content):
    path = probe.save(some())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert probe.load("http://127.0.0.1:8000/v1", "m") is None


@pytest.mark.parametrize(
    "changed", [{"model": "other"}, {"date": "yesterday"}, {"probes": [["stop"]]}, {"calls": "many"}]
)
def test_a_foreign_file_counts_as_none(cache, changed):
    path = probe.save(some(stop="ignored"))
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert probe.load("http://127.0.0.1:8000/v1", "m") is None


def test_a_probe_leaves_one_file_a_model(cache):
    probe.save(some(stop="ignored"))
    probe.save(some(stop="honoured"))
    assert len(list(cache.rglob("*.json"))) == len(list((cache / "endpoints").iterdir())) == 1


@pytest.mark.parametrize(
    ("later", "told"),
    [
        (timedelta(seconds=5), "just now"),
        (timedelta(minutes=1), "1 minute ago"),
        (timedelta(hours=5), "5 hours ago"),
        (timedelta(days=3, hours=4), "3 days ago"),
    ],
)
def test_the_age_is_told_in_words(later, told):
    assert probe.age(some(), now=datetime.fromisoformat(some().date) + later) == told


# What it means for a recipe


def test_only_what_is_set_and_not_honoured_is_warned_of():
    findings = some(stop="ignored", temperature="refused", seed="ignored", max_tokens="unclear")
    told = probe.warnings(findings, Sampling(temperature=0.0, stop=("\n",), max_tokens=9, top_p=0.5))
    assert told == [
        "teacher.sampling.temperature is set, but this endpoint refuses temperature: requests with it will fail",
        "teacher.sampling.stop is set, but this endpoint ignores stop: answers are cut after the fact",
    ]


def test_what_was_not_looked_at_is_unclear():
    assert some().verdict("top_p") == "unclear"


# The commands


def test_one_teacher_and_a_list_of_them_are_both_understood():
    a, b = (Teacher(model=name, base_url="http://127.0.0.1:9/v1", terms="ours") for name in "ab")
    found = [Recipe(name="x", teacher=teacher).teachers for teacher in (None, a, [a, b])]
    assert found == [(), (a,), (a, b)]


def test_a_password_in_the_address_and_a_key_cannot_both_be_sent(cache):
    with pytest.raises(RecipeError, match="leave one out"):
        probe.probe("http://user:password@127.0.0.1:9/v1", "m", api_key=KEY)


def test_findings_of_another_age_are_still_told():
    assert "ago" in probe.table(replace(some(), date="2020-01-01T00:00:00+00:00"))[0]
