"""The OpenAI-compatible provider against a real server that misbehaves."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from multidict import CIMultiDict

from distill.engine.mock_server import EMPTY, HANG, HTML, RESET, TRUNCATED, Fault, MockServer, first, status
from distill.engine.providers import ProviderError, Reply, one_line
from distill.engine.providers.addresses import normalise_url
from distill.engine.providers.openai import OpenAIProvider
from distill.engine.providers.rate_limit_headers import retry_after_seconds
from distill.errors import RecipeError
from distill.types import Endpoint, Message, Request, Sampling, Usage

KEY = "sk-a-very-secret-key-0123456789"
HELLO = Request(role="teacher", messages=(Message("user", "hello"),))


def ask(url: str, request: Request = HELLO, **options: Any) -> Reply:
    async def once() -> Reply:
        provider = OpenAIProvider(url, "m", **options)
        try:
            return await provider.send(request)
        finally:
            await provider.close()

    return asyncio.run(once())


def ask_badly(fault: Fault, **options: Any) -> ProviderError:
    with MockServer(fault=lambda number, body: fault) as server, pytest.raises(ProviderError) as caught:
        ask(server.url, **options)
    assert server.count == 1
    return caught.value


def test_messages_go_to_chat_completions() -> None:
    with MockServer() as server:
        reply = ask(server.url)
    assert (reply.text, reply.finish, reply.usage) == ("answer to hello", "stop", Usage(1, 3))
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [{"model": "m", "messages": [{"role": "user", "content": "hello"}]}]


def test_a_prompt_goes_to_completions() -> None:
    with MockServer() as server:
        reply = ask(server.url, Request(role="teacher", prompt="once"))
    assert reply.text == "answer to once"
    assert (server.paths, server.bodies) == (["/v1/completions"], [{"model": "m", "prompt": "once"}])


def test_the_body_carries_the_sampling_fields_that_are_set_and_no_others() -> None:
    sampling = Sampling(temperature=0.0, max_tokens=7, stop=("\n", "END"), seed=0)
    with MockServer() as server:
        ask(server.url, Request(role="teacher", prompt="p", sampling=sampling))
    assert server.bodies[0] == {
        "model": "m", "prompt": "p", "temperature": 0.0, "max_tokens": 7, "stop": ["\n", "END"], "seed": 0,
    }  # fmt: skip


def test_extra_body_joins_the_body_takes_fields_out_and_changes_the_identity() -> None:
    extra = {"top_k": 20, "max_tokens": None, "max_completion_tokens": 9}
    request = Request(role="teacher", prompt="p", sampling=Sampling(max_tokens=9))
    with MockServer() as server:
        ask(server.url, request, extra_body=extra)
    assert server.bodies[0] == {"model": "m", "prompt": "p", "top_k": 20, "max_completion_tokens": 9}
    identities = {OpenAIProvider("http://h/v1", "m", extra_body=e).endpoint for e in ({}, extra, {"top_k": 21})}
    assert len(identities) == 3


def test_the_identity_is_the_normal_address_unless_one_is_given() -> None:
    url = "http://user:pw@127.0.0.1:8000/v1/?k=v"
    remote = OpenAIProvider(url, "m", revision="r1")
    assert remote.endpoint == Endpoint(model="m", url="http://127.0.0.1:8000/v1", revision="r1")
    local = Endpoint(model="m", fingerprint="f")
    assert OpenAIProvider(url, "served", endpoint=local).endpoint == local


@pytest.mark.parametrize("extra", [{"stream": True}, {"n": 2}])
def test_an_extra_body_that_would_waste_answers_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="extra_body asks for"):
        OpenAIProvider("http://h/v1", "m", extra_body=extra)


@pytest.mark.parametrize(
    ("said", "finish"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "filtered"), ("tool_calls", "tool"), ("x", "unknown")],
)
def test_finish_reasons_are_mapped(said: str, finish: str) -> None:
    with MockServer(finish=said) as server:
        assert ask(server.url).finish == finish


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "refusal": "I would rather not"}, "I would rather not"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": None, "reasoning_content": "hm"}, ""),
        ({"content": ""}, ""),
    ],
)
def test_text_is_found_where_endpoints_put_it(message: dict[str, Any], text: str) -> None:
    with MockServer(answer=lambda body: {"choices": [{"message": message, "finish_reason": "stop"}]}) as server:
        reply = ask(server.url)
    assert (reply.text, reply.usage) == (text, None)


def test_the_body_is_kept_whole() -> None:
    body = {"choices": [{"message": {"content": "hi", "reasoning": "because"}}], "x": {"y": [1]}, "usage": {"z": 1}}
    with MockServer(answer=lambda _: body) as server:
        assert ask(server.url).raw == body


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(408), "http_408"),
        (status(409), "http_409"),
        (status(425), "http_425"),
        (status(429), "http_429"),
        (status(500), "http_500"),
        (status(503), "http_503"),
        (status(529), "http_529"),
        (RESET, "connection"),
        (TRUNCATED, "malformed"),
        (HTML, "malformed"),
        (EMPTY, "malformed"),
        (status(200, body="[1, 2]"), "malformed"),
        (status(200, body='{"choices": "none"}'), "malformed"),
        (status(200, body={"error": {"code": 503, "message": "overloaded"}}), "http_503"),
        (status(200, body={"error": {"message": "upstream broke"}}), "http_502"),
    ],
)
def test_what_may_pass_is_transient(fault: Fault, reason: str) -> None:
    error = ask_badly(fault)
    assert (error.reason, error.transient, error.fatal) == (reason, True, False)


def test_no_answer_in_time_is_transient() -> None:
    error = ask_badly(HANG, timeout_seconds=0.2)
    assert (error.reason, error.transient, error.detail) == ("timeout", True, "no answer within 0.2 s")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(400, body={"error": {"message": "maximum context length is 2048 tokens"}}), "http_400"),
        (status(413), "http_413"),
        (status(422, body={"detail": [{"loc": ["body"], "msg": "bad"}]}), "http_422"),
        (status(400, body={"error": {"code": "content_filter", "message": "no"}}), "filtered"),
        (status(403, body={"error": {"code": 403, "message": "your input was flagged"}}), "filtered"),
    ],
)
def test_what_a_request_itself_causes_is_permanent(fault: Fault, reason: str) -> None:
    error = ask_badly(fault)
    assert (error.reason, error.transient, error.fatal) == (reason, False, False)


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (status(401), "api_key_env"),
        (status(402), "credit"),
        (status(403), "api_key_env"),
        (status(404, body={"error": {"message": "The model `m` does not exist"}}), 'the name of the model, "m"'),
        (status(404, body="<h1>Not Found</h1>"), "/v1"),
        (status(405), "/v1"),
        (status(400, body={"error": {"code": "model_not_found", "message": "?"}}), "name of the model"),
        (status(429, body={"error": {"code": "insufficient_quota", "message": "plan"}}), "credit"),
        (status(307, {"Location": "https://elsewhere/v1/chat/completions"}), "https://elsewhere/v1"),
    ],
)
def test_what_meets_every_request_is_fatal_and_says_what_to_do(fault: Fault, advice: str) -> None:
    error = ask_badly(fault)
    assert error.fatal
    assert advice in error.detail


def test_no_connection_is_told_apart_from_a_broken_one() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        with pytest.raises(ProviderError) as caught:
            ask(url)
    assert (caught.value.reason, caught.value.transient) == ("refused", True)
    assert url in caught.value.detail


def test_a_name_that_does_not_resolve_is_no_connection() -> None:
    with pytest.raises(ProviderError) as caught:
        ask("http://no-such-host.invalid/v1")
    assert caught.value.reason == "refused"


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    assert ask_badly(status(429, {"Retry-After": "7"})).retry_after == 7
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert ask_badly(status(503, {"Retry-After": soon})).retry_after == pytest.approx(60, abs=5)
    assert ask_badly(status(429)).retry_after is None


@pytest.mark.parametrize(("said", "seconds"), [("0.5", 0.5), ("soon", None), ("-1", None), ("", None)])
def test_an_unreadable_retry_after_is_none(said: str, seconds: float | None) -> None:
    assert retry_after_seconds(CIMultiDict({"retry-after": said})) == seconds


def test_a_retry_after_in_the_past_is_no_wait() -> None:
    assert retry_after_seconds({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0


def test_a_response_without_end_is_refused() -> None:
    error = ask_badly(status(200, body="x" * 5000), largest_body_bytes=1000)
    assert (error.reason, error.transient) == ("too_large", False)


def test_the_key_is_sent_and_appears_nowhere_else() -> None:
    def leak(body: Mapping[str, Any]) -> str:
        return f"your key is {KEY}, keep it"

    with MockServer(answer=leak) as server:
        reply = ask(server.url, api_key=KEY + "\n", headers={"X-Org": "org-secret-000"})
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["X-Org"] == "org-secret-000"
    assert reply.text == "your key is ***, keep it"
    assert KEY not in json.dumps(reply.raw)
    provider = OpenAIProvider("http://user:password1@h/v1?key=query-key", "m", headers={"X": KEY})
    assert repr(provider) == "OpenAIProvider('http://h/v1', 'm')"
    error = ask_badly(status(401, body={"error": {"message": f"Incorrect API key: {KEY}"}}), api_key=KEY)
    assert KEY not in error.detail + str(error) + repr(error)


def test_a_key_that_is_no_secret_may_be_said() -> None:
    with MockServer(answer=lambda body: "the glass is EMPTY") as server:
        assert ask(server.url, api_key="EMPTY").text == "the glass is EMPTY"


def test_a_key_that_no_header_can_carry_is_refused_unsaid() -> None:
    with pytest.raises(RecipeError) as caught:
        OpenAIProvider("http://h/v1", "m", api_key="sk-two\nlines")
    assert "two" not in str(caught.value)


def test_details_are_one_short_line() -> None:
    error = ask_badly(status(400, body={"error": {"message": "a\nb" * 1000}}))
    assert "\n" not in error.detail
    assert len(error.detail) <= 300
    assert one_line("x" * 999, 300) == "x" * 299 + "…"


def test_likelihoods_are_refused() -> None:
    with MockServer() as server, pytest.raises(ProviderError, match="cannot measure likelihoods") as caught:
        ask(server.url, Request(role="teacher", prompt="p", kind="likelihood", continuation="c"))
    assert (caught.value.fatal, server.count) == (True, 0)


def test_a_session_is_made_anew_in_every_loop() -> None:
    with MockServer() as server:
        provider = OpenAIProvider(server.url, "m")

        async def once() -> str:
            reply = await provider.send(HELLO)
            await provider.close()
            return reply.text

        assert [asyncio.run(once()) for _ in range(2)] == ["answer to hello"] * 2


def test_a_loopback_address_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with MockServer() as server:
        assert ask(server.url).text == "answer to hello"


def test_another_address_is_asked_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with MockServer() as proxy:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        assert ask("http://teacher.invalid/v1").text == "answer to hello"
        assert proxy.headers[0]["Host"] == "teacher.invalid"


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://user:pw@API.example.com/v1?key=1#x", "https://api.example.com/v1"),
        ("http://[::1]:80/", "http://[::1]:80"),
        ("https://h", "https://h"),
    ],
)
def test_an_address_is_normalised_and_nothing_added(url: str, normal: str) -> None:
    assert normalise_url(url) == normal
    assert normalise_url(normal) == normal


@pytest.mark.parametrize("url", ["", "h/v1", "ftp://h/v1", "http://", "http://h:port/v1", "http://user:pw@:1/v1"])
def test_what_is_no_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(RecipeError, match="is no address") as caught:
        normalise_url(url)
    assert "pw" not in str(caught.value)


def test_a_server_that_recovers_is_asked_over_the_same_session() -> None:
    with MockServer(fault=first(1, RESET)) as server:

        async def twice() -> str:
            provider = OpenAIProvider(server.url, "m")
            with pytest.raises(ProviderError):
                await provider.send(HELLO)
            reply = await provider.send(HELLO)
            await provider.close()
            return reply.text

        assert asyncio.run(twice()) == "answer to hello"
