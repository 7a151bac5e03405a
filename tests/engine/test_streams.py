"""A stream that answers a plain request is read as the response that it amounts to, once."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.mock_server import MockServer, status
from distill.engine.policy import completion_of
from distill.engine.providers import ProviderError, Reply
from distill.engine.providers.openai import OpenAIProvider
from distill.text.thinking import split_thoughts
from distill.types import Message, Request
from tests.support.engine.engines import bound

PROVIDER = OpenAIProvider("http://127.0.0.1:9/v1", "m")


def chunk(delta: dict[str, Any], finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def sse(*chunks: Any, end: str = "data: [DONE]\n\n", line: str = "\n") -> str:
    return "".join(f"data: {json.dumps(one)}{line}{line}" for one in chunks) + end


def lines(*chunks: Any) -> str:
    return "\n".join(map(json.dumps, chunks)) + "\n"


def read(body: str) -> Reply:
    return PROVIDER.read(body, {})


HALVES = [chunk({"role": "assistant", "content": "A pan"}), chunk({"content": " and a knife."}), chunk({}, "stop")]
USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 6}}
OLLAMA = [
    {"model": "m", "message": {"role": "assistant", "content": "A pan"}, "done": False},
    {"model": "m", "message": {"role": "assistant", "content": " and a knife."}, "done": False},
    {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"},
]


@pytest.mark.parametrize(
    "body",
    [
        sse(*HALVES),
        sse(*HALVES, USAGE, line="\r\n"),
        ": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n" + sse(*HALVES),
        "event: message\nid: 1\n" + sse(*HALVES, end=""),
        sse(chunk({"content": "A pan"}), chunk({"content": " and a knife."}, "stop"), end=""),
        sse(chunk({"content": ["A pan"]}), chunk({"content": [{"type": "text", "text": " and a knife."}]}, "stop")),
        sse({"choices": [{"text": "A pan"}]}, {"choices": [{"text": " and a knife.", "finish_reason": "stop"}]}),
        sse(*HALVES, {"choices": [{"index": 1, "delta": {"content": "another answer"}}]}),
        lines(*HALVES),
        lines(*OLLAMA),
        json.dumps(HALVES),
        "data: " + json.dumps(chunk({"content": "A pan and a knife."}, "stop")),
        "data: {\ndata: " + json.dumps(chunk({"content": "A pan and a knife."}, "stop"))[1:] + "\n\n",
    ],
)
def test_a_stream_is_the_answer_that_it_amounts_to(body):
    reply = read(body)
    assert (reply.text, reply.finish, reply.raw_json) == ("A pan and a knife.", "stop", None)


def test_usage_and_thoughts_of_a_stream_are_kept():
    pieces = [chunk({"reasoning_content": "Three"}), chunk({"reasoning_content": " things."}), *HALVES, USAGE]
    reply = read(sse(*pieces))
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.raw["choices"][0]["message"]["reasoning_content"]) == (9, "Three things.")
    parts = [chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": word}]}]}) for word in "ab"]
    mistral = read(sse(*parts, chunk({"content": "A pan."}, "stop")))
    said = split_thoughts(completion_of("k", mistral))
    assert (said.answer, said.thoughts) == ("A pan.", "ab")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (sse(*HALVES[:2], end=""), "malformed"),
        (lines(*OLLAMA[:2]), "malformed"),
        (sse(*HALVES)[:60], "malformed"),
        (sse(HALVES[0], {"error": {"code": 503, "message": "overloaded"}}, end=""), "http_503"),
        (sse(HALVES[0], chunk({}, "error"), end=""), "aborted"),
        (sse(end="data: [DONE]\n\n"), "malformed"),
        ("[1, 2]", "malformed"),
        ("one\ntwo", "malformed"),
    ],
)
def test_a_stream_that_breaks_off_is_no_answer(body, reason):
    with pytest.raises(ProviderError) as caught:
        read(body)
    assert (caught.value.reason, caught.value.transient) == (reason, True)


@given(st.text(min_size=1, max_size=30), st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_wherever_a_text_is_cut_into_chunks_it_is_the_same(text, cuts, is_sse):
    """Also within a surrogate pair, as servers that count UTF-16 do."""
    whole = text.encode("utf-16-le", "surrogatepass")
    places = sorted({2 * cut for cut in cuts if 2 * cut < len(whole)} | {0, len(whole)})
    pieces = [whole[a:b].decode("utf-16-le", "surrogatepass") for a, b in pairwise(places)]
    chunks = [*(chunk({"content": piece}) for piece in pieces), chunk({}, "stop")]
    event(f"{len(pieces) if len(pieces) < 3 else 'many'} pieces, astral: {any(ord(c) > 0xFFFF for c in text)}")
    assert read(sse(*chunks) if is_sse else lines(*chunks)).text == text


def test_a_stream_is_bought_once(tmp_path):
    def flow():
        answer = yield Request(role="teacher", messages=(Message("user", "hi"),))
        return answer.text

    body = status(200, {"Content-Type": "text/event-stream"}, sse(*HALVES))
    with MockServer(fault=lambda number, _: body) as server, Journal.open(tmp_path / "journal.sqlite") as journal:
        for _ in range(2):
            engine = Engine(journal, bound(teacher=OpenAIProvider(server.url, "m")))
            assert engine.run([("one", flow)])[0].value == "A pan and a knife."
    assert server.count == 1
