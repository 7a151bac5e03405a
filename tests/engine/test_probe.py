"""The probe: what each behaviour of a real server on loopback is called, and that it costs little and tells nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from random import Random
from typing import Any

import pytest
import yaml

from distill.cli.main import main
from distill.engine import probe
from distill.engine.mock_server import HANG, Fault, MockServer, Script, never, status
from distill.engine.probe import COUNT, PARAMETERS, Findings
from distill.engine.probe_verdicts import (
    COUNT_TOKENS,
    Probe,
    ProbeReply,
    judge_logprobs,
    judge_response_format,
    judge_seed,
    judge_stop,
    judge_temperature,
)
from distill.errors import EndpointError, RecipeError
from distill.recipe import Recipe, Teacher
from distill.types import Sampling

KEY = "sk-very-secret-0123456789"
WORDS = ["anchor", "bishop", "cello", "dune", "ember", "ferry", "gravel", "harbour", "igloo", "jigsaw", "kettle"]


class Model:
    """An imaginary model behind an endpoint that honours everything but what it is told to ignore."""

    def __init__(self, *ignoring: str, greedy: bool = False, obeys: bool = True, usage: bool = True) -> None:
        self._ignoring, self._greedy, self._obeys, self._usage = set(ignoring), greedy, obeys, usage
        self._fresh = count()

    def __call__(self, body: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in body.items() if name not in self._ignoring}
        turns = body.get("messages", [])
        system = any(turn["role"] == "system" for turn in turns) and "system" not in self._ignoring
        tokens = [f" {word}" for word in self._words(given, system)]
        limit = given.get("max_tokens", given.get("max_completion_tokens", 200))
        text, finish = "".join(tokens[:limit]), "length" if len(tokens) > limit else "stop"
        for string in given.get("stop", []):
            if string in text:
                text, finish = text.partition(string)[0], "stop"
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text.strip()}}
        if given.get("logprobs"):
            tops = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}][: given.get("top_logprobs", 0)]
            choice["logprobs"] = {"content": [{"logprob": -0.5, "top_logprobs": tops} for _ in text.split()]}
        asked = sum(len(turn["content"].split()) for turn in turns if turn["role"] != "system" or system)
        usage = {"prompt_tokens": asked, "completion_tokens": len(text.split())}
        return {"choices": [choice], **({"usage": usage} if self._usage else {})}

    def _words(self, given: Mapping[str, Any], system: bool) -> list[str]:
        if system and self._obeys:
            return ["PINEAPPLE"]
        if "response_format" in given:
            return ['{"numbers":', "[1,", "2,", "3]}"]
        if "prompt" in given or given["messages"][-1]["content"] == COUNT:
            return [str(number) for number in range(1, 13)]
        if self._greedy or given.get("temperature", 1) == 0:
            return Random("greedy").choices(WORDS, k=14)
        return Random(f"seed {given['seed']}" if "seed" in given else next(self._fresh)).choices(WORDS, k=14)


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


def odd(findings: Findings) -> dict[str, str]:
    """What is not honoured."""
    return {found.parameter: found.verdict for found in findings.probes if found.verdict != "honoured"}


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
    assert probe.ignored(findings) == {parameter}


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


def test_a_hosted_model_that_rounds_differently_at_0_is_not_accused():
    heard = [ProbeReply(text=f"a long common beginning, then {end}") for end in ("one", "two", "six")]
    assert judge_temperature(heard, heard).verdict == "unclear"


def test_answers_to_one_seed_that_part_late_are_unclear():
    first, again, other = (ProbeReply(text=text) for text in ("a long common one", "a long common two", "else"))
    assert judge_seed(first, again, other, None).verdict == "unclear"


def test_seeds_that_all_draw_the_same_are_ignored_where_none_draws_another():
    alike, bare = ProbeReply(text="the same"), ProbeReply(text="another")
    assert judge_seed(alike, alike, alike, bare).verdict == "ignored"


def test_a_stop_string_that_is_kept_at_the_end_is_honoured():
    plain, stopped = ProbeReply(text="1 2 3 4 5"), ProbeReply(text="1 2 3 4")
    assert judge_stop(plain, stopped).verdict == "honoured"


@pytest.mark.parametrize(
    ("text", "finish", "verdict"),
    [("Sur", "stop", "honoured"), ("Sure, 1", "stop", "ignored"), ("1 2 3, 1 2 3", "stop", "unclear")],
)
def test_stop_shows_in_another_answer_too_where_it_cuts_it_early(text, finish, verdict):
    assert judge_stop(ProbeReply(text="1 2 3 4 5 6 7"), ProbeReply(text=text, finish=finish)).verdict == verdict


def test_another_answer_shows_nothing_of_stop():
    assert judge_stop(ProbeReply(text="1 2 3 4 5"), ProbeReply(text="I, II, III")).verdict == "unclear"


def test_json_that_comes_without_the_parameter_shows_nothing():
    heard = ProbeReply(text='{"a": 1}')
    assert judge_response_format(heard, heard).verdict == "unclear"


def test_log_probabilities_that_are_all_0_are_not_believed():
    heard = ProbeReply(text="1", logprobs={"content": [{"logprob": 0.0, "top_logprobs": []}]})
    assert [found.verdict for found in judge_logprobs(heard)] == ["unclear", "unclear"]


def test_the_older_shape_of_logprobs_is_read():
    heard = ProbeReply(text="1", logprobs={"token_logprobs": [None, -0.5], "top_logprobs": [{"a": -1, "b": -2}]})
    assert [found.verdict for found in judge_logprobs(heard)] == ["honoured", "honoured"]


# What it costs, and what it never tells


@pytest.mark.parametrize(
    "fault",
    [
        refusing("temperature"), refusing("seed"), refusing("logprobs"), refusing("temperature", 1),
        lambda number, body: status(429, {"Retry-After": "0.01"}) if number % 2 else None,
        lambda number, body: status(400) if number else None,
        lambda number, body: status(500) if number else None,
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


def test_an_endpoint_that_hangs_is_given_up_after_two_calls():
    with (
        MockServer(answer=Model(), fault=lambda number, body: HANG if number else None) as server,
        pytest.raises(EndpointError, match=r"no answer within 0\.2 s"),
    ):
        probe.probe(server.url, "imaginary", timeout_seconds=0.2)
    assert server.count == 3


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


class Listed:
    """A server that lists its models and hands every question on to a `Model`."""

    def __init__(self, *models: str, code: int = 200) -> None:
        self.headers: list[dict[str, str]] = []
        self.posts = 0
        outer, model = self, Model("stop")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                self._reply(code, {"data": [{"id": name} for name in models]})

            def do_POST(self) -> None:
                outer.posts += 1
                self._reply(200, model(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

            def _reply(self, code: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}/v1"


@contextmanager
def listing(*models: str, code: int = 200) -> Iterator[Listed]:
    listed = Listed(*models, code=code)
    thread = threading.Thread(target=listed.server.serve_forever, args=[0.01])
    thread.start()
    try:
        yield listed
    finally:
        listed.server.shutdown()
        thread.join()
        listed.server.server_close()


def distill(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def endpoint_lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if "127.0.0.1" in line or line.startswith("  ")]


def test_doctor_asks_the_only_model_and_keeps_what_it_found(cache, capsys):
    with listing("tiny") as server:
        _, out, _ = distill(capsys, "doctor", f"http://{server.address}")
    assert f"ok   http://{server.address} serves tiny" in out
    assert 'the answer goes on behind "4"' in next(line for line in out.splitlines() if line.startswith("  stop"))
    found = probe.load(f"http://{server.address}", "tiny")
    assert found is not None
    assert odd(found) == {"stop": "ignored"}
    assert server.posts == found.calls


def test_doctor_names_the_models_where_there_are_several(cache, capsys):
    with listing("tiny", "large") as server:
        code, out, _ = distill(capsys, "doctor", f"http://{server.address}")
        assert (code, server.posts) == (1, 0)
        assert "serves tiny, large" in out
        assert "--model NAME" in out
        distill(capsys, "doctor", f"http://{server.address}", "--model", "large")
    assert probe.load(f"http://{server.address}", "large") is not None


def test_doctor_asks_a_named_model_where_no_list_is_given(cache, capsys):
    with MockServer(answer=Model()) as server:
        _, out, _ = distill(capsys, "doctor", server.url, "--model", "imaginary")
    assert f"{server.url} answered 405 to GET /models" in out
    assert "  stop             honoured" in out


def test_doctor_sends_the_key_and_prints_neither_it_nor_what_the_address_hides(cache, capsys, monkeypatch):
    monkeypatch.setenv("PROBE_KEY", KEY)
    with listing("tiny") as server:
        url = f"http://{server.address}?token=hidden-token-1"
        _, out, err = distill(capsys, "doctor", url, "--api-key-env", "PROBE_KEY")
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    kept = "".join(path.read_text() for path in cache.rglob("*.json"))
    assert kept
    assert [secret for secret in (KEY, "hidden-token-1") if secret in out + err + kept] == []


def test_doctor_says_who_to_ask_for_a_key(cache, capsys):
    with listing(code=401) as server:
        code, out, err = distill(capsys, "doctor", f"http://{server.address}", "--model", "tiny")
    assert code == 1
    assert endpoint_lines(out) == [
        f"MISS http://{server.address} answered 401 to GET /models; "
        "name the variable that holds the key with --api-key-env"
    ]
    assert err == ""
    assert server.posts == 0


def test_doctor_says_in_one_line_that_nothing_is_there(cache, capsys):
    code, out, err = distill(capsys, "doctor", "http://user:word@127.0.0.1:9/v1?key=1", "--model", "tiny")
    assert code == 1
    assert endpoint_lines(out) == [
        "MISS cannot connect to http://127.0.0.1:9/v1: Cannot connect to host 127.0.0.1:9 ssl:default "
        "[Connect call failed ('127.0.0.1', 9)]; check base_url and that its server is running"
    ]
    assert err == ""


def test_doctor_refuses_a_key_variable_that_is_not_set(cache, capsys):
    code, out, err = distill(capsys, "doctor", "http://127.0.0.1:9/v1", "--api-key-env", "NO_SUCH_VARIABLE")
    assert (code, out) == (2, "")
    assert err == "error: --api-key-env: the variable NO_SUCH_VARIABLE is not set; type: export NO_SUCH_VARIABLE=…\n"


def test_doctor_wants_an_address_for_a_model(cache, capsys):
    code, _, err = distill(capsys, "doctor", "--model", "tiny")
    assert (code, err) == (2, "error: --model and --api-key-env are about an endpoint; give its URL as well\n")


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe whose teacher is at an address, and returns its path."""

    def write(url: str | None, **teacher: Any) -> str:
        (tmp_path / "tasks.txt").write_text("Name a fruit.\n")
        where = {"base_url": url} if url else {"serve": "transformers"}
        document = {
            "name": "probing",
            "teacher": {"model": "smollm2", **where, "terms": "none", "sampling": {"stop": ["\n"]}, **teacher},
            "collect": {"tasks": "tasks.txt", "system": "Be brief."},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(document))
        return str(path)

    return write


STOP_WARNING = "warning: teacher.sampling.stop is set, but this endpoint ignores stop: answers are cut after the fact"
SYSTEM_WARNING = (
    "warning: collect.system is set, but this endpoint ignores system messages: answers are given without it"
)


def test_check_probes_the_teacher_and_warns_of_what_it_ignores(cache, capsys, recipe):
    with MockServer(answer=Model("stop", "system")) as server:
        code, out, _ = distill(capsys, "check", recipe(server.url), "--probe")
    assert code == 0
    assert "  stop             ignored " in out
    assert out.splitlines()[-2:] == [STOP_WARNING, SYSTEM_WARNING]


def test_check_reads_what_was_found_and_asks_nothing(cache, capsys, recipe):
    with MockServer(answer=Model("stop", "system")) as server:
        path = recipe(server.url)
        distill(capsys, "check", path, "--probe")
        asked = server.count
        code, out, _ = distill(capsys, "check", path)
    assert (code, server.count) == (0, asked)
    assert out.splitlines()[-2:] == [f"{STOP_WARNING} (probed just now)", f"{SYSTEM_WARNING} (probed just now)"]


def test_check_sends_the_recipes_key_and_secret_headers(cache, capsys, recipe, monkeypatch):
    monkeypatch.setenv("PROBE_KEY", KEY)
    monkeypatch.setenv("PROBE_TEAM", "team-secret-12345")
    with MockServer(answer=Model()) as server:
        path = recipe(server.url, api_key_env="PROBE_KEY", headers_env={"X-Team": "PROBE_TEAM"})
        _, out, err = distill(capsys, "check", path, "--probe")
    sent = {(headers["Authorization"], headers["X-Team"]) for headers in server.headers}
    assert sent == {(f"Bearer {KEY}", "team-secret-12345")}
    assert [secret for secret in (KEY, "team-secret-12345") if secret in out + err] == []


def test_check_of_a_server_of_our_own_needs_no_probe(cache, capsys, recipe):
    code, out, _ = distill(capsys, "check", recipe(None), "--probe")
    assert code == 0
    assert out.splitlines()[-1].startswith("probe: no teacher.base_url in the recipe")


@pytest.mark.parametrize(("fault", "said"), [(status(401), "HTTP 401"), (status(404), "HTTP 404")])
def test_check_says_in_one_line_why_it_cannot_probe(cache, capsys, recipe, fault, said):
    with MockServer(fault=lambda number, body: fault) as server:
        code, _, err = distill(capsys, "check", recipe(server.url), "--probe")
    errors = [line for line in err.splitlines() if line.startswith("error")]
    assert code == 1
    assert len(errors) == 1
    assert said in errors[0]
    assert server.url in errors[0]
    assert list(cache.rglob("*.json")) == []


def test_check_of_an_unreachable_teacher_is_one_line(cache, capsys, recipe):
    code, _, err = distill(capsys, "check", recipe("http://127.0.0.1:9/v1"), "--probe")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: cannot connect to http://127.0.0.1:9/v1")


def test_one_teacher_and_a_list_of_them_are_both_understood():
    a, b = (Teacher(model=name, base_url="http://127.0.0.1:9/v1", terms="ours") for name in "ab")
    found = [Recipe(name="x", teacher=teacher).teachers for teacher in (None, a, [a, b])]
    assert found == [(), (a,), (a, b)]


def test_a_password_in_the_address_and_a_key_cannot_both_be_sent(cache):
    with pytest.raises(RecipeError, match="both"):
        probe.probe("http://user:password@127.0.0.1:9/v1", "m", api_key=KEY)


def test_findings_of_another_age_are_still_told():
    assert "ago" in probe.table(replace(some(), date="2020-01-01T00:00:00+00:00"))[0]
