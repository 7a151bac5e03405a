"""One table of the chat responses of public providers, read alike on every way by which an answer comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from distill.collect.provenance import Witness
from distill.core.hashing import canonical
from distill.core.jsonl import fault_of
from distill.core.surrogates import mended, parsed
from distill.engine.batch.client import BatchJobs
from distill.engine.journal.keys import key
from distill.engine.journal.records import answered
from distill.engine.journal.store import Journal
from distill.engine.policy import completion_of
from distill.engine.providers import ProviderError, Reply
from distill.engine.providers.openai import OpenAIProvider
from distill.engine.providers.replies import reread
from distill.text.thinking import split_answer
from distill.types import Completion, Failure, Message, Request, Session
from tests.support.engine.journal_rows import HERE

WATER, WHY = "A kettle boils water.", "The user wants a fact."
PROVIDER = OpenAIProvider("http://127.0.0.1:9/v1", "m")
QUESTION = Request(role="teacher", messages=(Message("user", "Ask about kettles."),))


def chat(content: Any = WATER, finish: Any = "stop", /, choice: Any = None, body: Any = None, **message: Any) -> Any:
    """A response in OpenAI's shape: `message`, `choice` and `body` are more fields of each."""
    turn = {"role": "assistant", "content": content, **message}
    return {"choices": [{"index": 0, "message": turn, "finish_reason": finish, **(choice or {})}], **(body or {})}


def text(kind: str, words: str) -> dict[str, str]:
    return {"type": kind, "text": words}


USAGE = {"usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}}
FILTERS = {"hate": {"filtered": False, "severity": "safe"}, "violence": {"filtered": True, "severity": "high"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": "kettle"}'}}
THINKING = {"type": "thinking", "thinking": [text("text", WHY)], "closed": True}
WHOLE, CUT = (WATER, "", "stop"), (WATER, "", "length")
THOUGHT = (WATER, WHY, "stop")
"""Answer, thoughts and end of a response that makes a session; below, the reason of a failure stands in its place."""

SHAPES: dict[str, tuple[Any, tuple[str, str, str] | str]] = {
    "openai": (chat(refusal=None, annotations=[], choice={"logprobs": None}, body=USAGE), WHOLE),
    "openai_length": (chat(WATER, "length"), CUT),
    "openai_refusal": (chat(None, refusal="I cannot."), ("I cannot.", "", "stop")),
    "openai_tool": (chat(None, "tool_calls", tool_calls=[CALL]), "tool_call"),
    "openai_function": (chat("Let me look.", "function_call", function_call=CALL["function"]), "tool_call"),
    "openai_completions": ({"choices": [{"text": WATER, "finish_reason": "stop", "logprobs": None}]}, WHOLE),
    "azure": (chat(choice={"content_filter_results": {}}, body={"prompt_filter_results": []}), WHOLE),
    "azure_filtered": (chat("A ket", "content_filter", choice={"content_filter_results": FILTERS}), "filtered"),
    "azure_filter_null": (chat(None, "content_filter"), "filtered"),
    "mistral": (chat(tool_calls=None, prefix=False), WHOLE),
    "mistral_model_length": (chat(WATER, "model_length"), CUT),
    "mistral_chunks": (chat([THINKING, text("text", WATER)]), THOUGHT),
    "mistral_references": (
        chat([text("text", "A kettle "), {"type": "reference", "reference_ids": [0]}, text("text", "boils water.")]),
        WHOLE,
    ),
    "magistral_text": (chat(f"[THINK]{WHY}[/THINK]{WATER}"), THOUGHT),
    "gemini": (chat(extra_content={"google": {"thought_signature": "CiQ="}}), WHOLE),
    "gemini_upper_case": (chat(WATER, "MAX_TOKENS"), CUT),
    "gemini_safety": (chat("A ket", "SAFETY"), "filtered"),
    "gemini_filter": (chat(None, "content_filter: RECITATION"), "filtered"),
    "gemini_call": (chat(None, "function_call_filter: MALFORMED_FUNCTION_CALL"), "aborted"),
    "gemini_thought": (chat(f"<thought>\n{WHY}\n</thought>\n{WATER}"), THOUGHT),
    "gemini_own": (
        {"candidates": [{"content": {"parts": [{"text": WHY, "thought": True}, {"text": WATER}], "role": "model"},
                         "finishReason": "STOP"}]},
        THOUGHT,
    ),
    "openrouter": (chat(reasoning=WHY, choice={"native_finish_reason": "STOP"}, body={"provider": "X"}), THOUGHT),
    "openrouter_details": (chat(reasoning_details=[{"type": "reasoning.text", "text": WHY}]), THOUGHT),
    "openrouter_error": (
        chat("A kettle boils", "error", choice={"error": {"code": 502, "message": "Upstream disconnected"}}),
        "http_502",
    ),
    "openrouter_body_error": ({"error": {"code": 503, "message": "overloaded"}, **chat("A ket")}, "http_503"),
    "deepseek": (chat(reasoning_content=WHY, body={"system_fingerprint": "fp"}), THOUGHT),
    "deepseek_busy": (chat("A kettle", "insufficient_system_resource"), "aborted"),
    "deepseek_thoughts_alone": (chat("", "stop", reasoning_content=WHY), "only_thoughts"),
    "vllm": (chat(reasoning=None, reasoning_content=None, choice={"stop_reason": 128001, "token_ids": None}), WHOLE),
    "vllm_abort": (chat("A kettle", "abort", choice={"stop_reason": None}), "aborted"),
    "vllm_no_parser": (chat(f"{WHY}\n</think>\n\n{WATER}"), THOUGHT),
    "sglang": (chat(choice={"matched_stop": 128009, "hidden_states": None}, body={"metadata": {"weight": 1}}), WHOLE),
    "sglang_object": (chat(WATER, {"type": "length", "length": 16}), CUT),
    "llama_cpp": (chat(body={"timings": {"predicted_n": 5}, "object": "chat.completion"}), WHOLE),
    "ollama": (chat(reasoning=WHY, body={"system_fingerprint": "fp_ollama"}), THOUGHT),
    "ollama_own": ({"message": {"content": WATER, "thinking": WHY}, "done_reason": "stop"}, THOUGHT),
    "ollama_load": (chat("", "load"), "aborted"),
    "lm_studio": (chat(tool_calls=[], body={"stats": {}}), WHOLE),
    "lm_studio_error": ({"error": "Unexpected endpoint or method."}, "http_502"),
    "together": (chat(WATER, "eos", tool_calls=[], choice={"seed": 7}), WHOLE),
    "groq": (chat(body={"x_groq": {"id": "req"}, "usage_breakdown": None}), WHOLE),
    "fireworks": (chat(f"<think>\n{WHY}\n</think>\n{WATER}"), THOUGHT),
    "anthropic": (chat(WATER, "end_turn"), WHOLE),
    "anthropic_own": (
        {"role": "assistant", "content": [{"type": "thinking", "thinking": WHY, "signature": "x"}, text("text", WATER)],
         "stop_reason": "max_tokens"},
        (WATER, WHY, "length"),
    ),
    "anthropic_refusal": (chat("", "refusal"), "filtered"),
    "cohere": (chat(WATER, "COMPLETE"), WHOLE),
    "cohere_own": ({"message": {"content": [text("text", WATER)]}, "finish_reason": "MAX_TOKENS"}, CUT),
    "cohere_toxic": (chat("A", "ERROR_TOXIC"), "filtered"),
    "cohere_tokens": (
        chat(f"<|START_THINKING|>{WHY}<|END_THINKING|><|START_RESPONSE|>{WATER}<|END_RESPONSE|>"), THOUGHT
    ),
    "qwen": (chat(reasoning_content=WHY, body={"request_id": "r"}), THOUGHT),
    "dashscope_own": ({"output": chat(WATER, "stop"), "usage": {"input_tokens": 9}}, WHOLE),
    "zhipu": (chat(reasoning_content=f"\n{WHY}", body={"request_id": "1"}), THOUGHT),
    "zhipu_sensitive": (chat("A kettle is a", "sensitive"), "filtered"),
    "zhipu_network": (chat("A kettle is a", "network_error"), "aborted"),
    "moonshot": (chat(f"◁think▷{WHY}◁/think▷{WATER}"), THOUGHT),
    "baidu": (chat(WATER, "normal", choice={"flag": 0}), WHOLE),
    "minimax": ({"choices": None, "base_resp": {"status_code": 1004, "status_msg": "login fail"}}, "malformed"),
    "seed": (chat(f"<seed:think>{WHY}</seed:think>{WATER}"), THOUGHT),
    "gpt_oss": (
        chat(f"<|channel|>analysis<|message|>{WHY}<|end|><|start|>assistant<|channel|>final<|message|>{WATER}<|return|>"),
        THOUGHT,
    ),
    "gpt_oss_stripped": (chat(f"analysis{WHY}assistantfinal{WATER}"), THOUGHT),
    "gemma": (chat(f"<|channel>thought\n{WHY}\n<channel|>{WATER}"), THOUGHT),
    "reka": (chat(f"<reasoning>\n{WHY}\n</reasoning>\n<answer>{WATER}</answer>"), THOUGHT),
    "bedrock_guardrail": (chat("A", "guardrail_intervened"), "filtered"),
    "tgi": (chat(WATER, "eos_token"), WHOLE),
    "watsonx": (chat(WATER, "TOKEN_LIMIT"), CUT),
    "part": (chat(text("text", WATER)), WHOLE),
    "strings": (chat(["A kettle ", "boils water."]), WHOLE),
    "string_for_message": ({"choices": [{"message": WATER, "finish_reason": "stop"}]}, WHOLE),
    "delta_for_message": ({"choices": [{"delta": {"content": WATER}, "finish_reason": "stop"}]}, WHOLE),
    "value_of_text": (chat([{"type": "text", "text": {"value": WATER, "annotations": []}}]), WHOLE),
    "no_end": (chat(WATER, None), (WATER, "", "unknown")),
    "new_end": (chat(WATER, "weather"), (WATER, "", "unknown")),
    "number": (chat(12), "malformed"),
    "object": (chat({"answer": WATER}), "malformed"),
    "image": (chat([{"type": "image_url", "image_url": {"url": "x"}}]), "malformed"),
    "null": (chat(None), "empty"),
    "no_content": ({"choices": [{"message": {"role": "assistant"}, "finish_reason": "length"}]}, "empty"),
    "blank": (chat("  \n"), "empty"),
    "no_parts": (chat([]), "empty"),
    "zero_width": (chat("\u200b \ufeff"), "empty"),
}  # fmt: skip


def by_chat(body: Any, folder: Path) -> Reply | ProviderError | Completion | Failure:
    try:
        return PROVIDER.read(json.dumps(body), {})
    except ProviderError as error:
        return error


def by_batch(body: Any, folder: Path) -> Reply | ProviderError | Completion | Failure:
    line = {"custom_id": "k", "response": {"status_code": 200, "body": body}, "error": None}
    result = BatchJobs(PROVIDER).result(json.dumps(line).encode())
    assert result is not None
    return result[1]


def by_replay(body: Any, folder: Path) -> Reply | ProviderError | Completion | Failure:
    """As an earlier version journalled it, which knew neither the shape nor the end."""
    of = key(QUESTION, HERE)
    stored = Completion(key=of, text="", finish="unknown", raw=body)
    with Journal.open(folder / "journal.sqlite") as journal:
        journal.write(answered(stored, canonical(QUESTION), "answer", HERE)).result(5)
        answer = journal.get(of)
    assert answer is not None
    return answer


def outcome(answer: Reply | ProviderError | Completion | Failure) -> tuple[str, str, str] | str:
    """What a session would learn from it, or why there is none."""
    if isinstance(answer, (ProviderError, Failure)):
        return answer.reason
    completion = completion_of("k", answer) if isinstance(answer, Reply) else answer
    split = split_answer(completion, asked=QUESTION.messages)
    return split.reason if isinstance(split, Failure) else (split.answer, split.thoughts, completion.finish)


@pytest.mark.parametrize("way", [by_chat, by_batch, by_replay])
@pytest.mark.parametrize("name", SHAPES)
def test_a_response_is_read_for_what_it_is(name, way, tmp_path):
    body, expected = SHAPES[name]
    found = outcome(way(body, tmp_path))
    if way is by_replay and isinstance(expected, str) and ("http" in expected or name == "minimax"):
        assert found in {"aborted", "empty"}  # such a row was never an answer, or only its text was
    else:
        assert found == expected


def test_what_broke_off_is_asked_again_and_what_is_empty_is_not():
    errors = {name: by_chat(SHAPES[name][0], Path()) for name in ("vllm_abort", "openrouter_error", "number")}
    assert all(isinstance(error, ProviderError) and error.transient and not error.fatal for error in errors.values())
    assert isinstance(by_chat(SHAPES["blank"][0], Path()), Reply)


@pytest.mark.parametrize(
    ("content", "old", "text", "finish"),
    [
        (
            text("text", f"{WATER} END more"),
            "{'type': 'text', 'text': 'A kettle boils water. END more'}",
            WATER,
            "stop",
        ),
        ([f"{WATER}END"], "", WATER, "stop"),
        (f"{WATER} END", "A kettle", "A kettle", "length"),
    ],
)
def test_a_text_of_an_earlier_version_is_read_again_only_where_it_was_wrong(content, old, text, finish):
    stored = Completion(key="k", text=old, finish="unknown", raw=chat(content, "length"))
    answer = reread(stored, json.dumps({"sampling": {"stop": ["END"]}}))
    assert isinstance(answer, Completion)
    assert (answer.text.strip(), answer.finish) == (text, finish)


names = st.sampled_from(
    [
        "choices",
        "message",
        "delta",
        "content",
        "text",
        "type",
        "parts",
        "error",
        "code",
        "reasoning",
        "finish_reason",
        "reasoning_content",
        "thinking",
        "refusal",
        "model",
        "candidates",
        "output",
        "role",
        "tool_calls",
        "usage",
    ]
)
odd_texts = st.text(st.characters(categories=["Cs", "Ll", "Cc"]), max_size=5)
known_texts = st.sampled_from(["stop", "error", "SAFETY", "text", "thinking", "assistant", "<think>a</think>", WATER])
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), odd_texts, known_texts)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
bodies = st.one_of(
    st.dictionaries(names, trees, max_size=5),
    st.builds(lambda turn, end: {"choices": [{"message": turn, "finish_reason": end}]}, trees, known_texts),
    st.builds(chat, trees),
)


@given(bodies, st.sampled_from(["stop", "unknown", "length"]), odd_texts | known_texts)
def test_whatever_a_body_holds_it_is_an_answer_or_a_failure_and_can_be_written(body, finish, text):
    raw = parsed(json.dumps(body))
    now = outcome(by_chat(body, Path()))
    then = reread(Completion(key="k", text=mended(text), finish=finish, raw=raw), "{}")
    event(f"now: {now if isinstance(now, str) else now[2]}, replayed: {outcome(then)!r:.12}")

    def flow():
        answer = yield QUESTION
        split = answer if isinstance(answer, Failure) else split_answer(answer)
        if isinstance(split, Failure):
            return split
        return Session("s", (Message("assistant", split.answer),), {"thoughts": split.thoughts, "keys": ["k"]})

    running = Witness("m").watch(flow())
    next(running)
    with pytest.raises(StopIteration) as end:
        running.send(then)
    assert fault_of(end.value.value) == ""
