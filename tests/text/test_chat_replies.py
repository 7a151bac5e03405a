"""Ends, contents and model names of chat responses, in any provider's words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from distill.core.jsonl import read_sessions, write_rows
from distill.core.surrogates import mended, parsed
from distill.text.chat_replies import ENDINGS, ending_of, other_model, text_in, thoughts_of
from distill.types import Message, Session

WORDS = {
    "stop": "stop STOP eos EOS_TOKEN end_turn stop_sequence StopSequence COMPLETE completed FINISH_REASON_STOP normal"
    " FinishReason.STOP finished endoftext stop_token done end-of-turn",
    "length": "length LENGTH max_tokens MAX_TOKENS model_length max_output_tokens token_limit"
    " model_context_window_exceeded context_length_exceeded max-new-tokens maxTokens incomplete truncated"
    " FINISH_REASON_MAX_TOKENS context_window max_completion_tokens cutoff",
    "filtered": "content_filter ContentFilter SAFETY RECITATION BLOCKLIST PROHIBITED_CONTENT SPII IMAGE_SAFETY"
    " sensitive guardrail_intervened content_filtered refusal ERROR_TOXIC LANGUAGE moderation policy_violation"
    " MODEL_ARMOR blocked",
    "tool": "tool_calls TOOL_CALL tool_use function_call functionCall tool pause_turn tool-calls",
    "failed": "error ERROR abort aborted network_error insufficient_system_resource MALFORMED_FUNCTION_CALL cancelled"
    " USER_CANCEL timeout timed_out time_limit server_error unload not_finished UNEXPECTED_TOOL_CALL overloaded failed"
    " upstream_disconnected preempted",
    "unknown": "none weather OTHER FINISH_REASON_UNSPECIFIED 7 \u7ed3\u675f null",
}


@pytest.mark.parametrize("ending", WORDS)
def test_an_end_is_known_in_every_providers_words(ending):
    assert {word: ending_of(word) for word in WORDS[ending].split()} == dict.fromkeys(WORDS[ending].split(), ending)


def test_an_end_that_is_no_word_is_unknown_or_has_its_type():
    assert {ending_of(value) for value in (None, "", 3, True, [], {})} == {"unknown"}
    assert [ending_of({"type": word, "matched": 2}) for word in ("abort", "stop", "length")] == [
        "failed",
        "stop",
        "length",
    ]


@given(st.sampled_from(sorted(" ".join(WORDS.values()).split())), st.sampled_from(["", "_", "-", " "]), st.booleans())
def test_case_and_signs_change_no_end(word, sign, is_upper):
    event(ending_of(word))
    changed = sign.join(re.split("[_-]", word))
    assert ending_of(changed.upper() if is_upper else changed.lower()) == ending_of(word)


def test_the_table_has_every_end_but_the_unknown_one():
    assert {ending for ending, _ in ENDINGS} == WORDS.keys() - {"unknown"}


words = st.text(max_size=8)
leaves = st.one_of(
    words.map(lambda text: (text, text)),
    words.map(lambda text: ({"type": "text", "text": text}, text)),
    words.map(lambda text: ({"type": "output_text", "text": {"value": text}}, text)),
    words.map(lambda text: ({"text": text}, text)),
    words.map(lambda text: ({"type": "thinking", "thinking": text}, "")),
    st.just(({"type": "tool_use", "name": "search", "input": {}}, "")),
    st.just((None, "")),
)
contents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4).map(
        lambda pairs: ([one for one, _ in pairs], "".join(t for _, t in pairs))
    ),
    max_leaves=12,
)


@given(contents)
def test_a_content_of_known_parts_is_its_texts_in_order(pair):
    content, expected = pair
    event(type(content).__name__)
    assert text_in(content) == expected


odd = st.one_of(
    st.integers(), st.booleans(), st.floats(), st.dictionaries(st.sampled_from(["answer", "url", "id"]), words)
)


@given(odd, st.lists(leaves.map(lambda pair: pair[0]), max_size=3), st.booleans())
def test_a_content_without_a_plain_meaning_is_never_learnt_as_its_repr(value, before, is_nested):
    event(type(value).__name__)
    with pytest.raises(ValueError, match="a content of the type"):
        text_in([*before, value] if is_nested else value)


@pytest.mark.parametrize(
    ("asked", "named", "is_other"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", False),
        ("mistral-large-latest", "mistral-large-2411", False),
        ("claude-3-5-sonnet", "claude-3-5-sonnet-20241022", False),
        ("deepseek/deepseek-chat:free", "deepseek/deepseek-chat", False),
        ("gemini-1.5-pro", "models/gemini-1.5-pro-002", False),
        ("Qwen/Qwen3-8B", "qwen3-8b", False),
        ("/models/qwen3-8b.gguf", "qwen3-8b", False),
        ("m", None, False),
        ("m", 3, False),
        ("gpt-4o", "gpt-4o-mini", True),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06", True),
        ("llama-3.1-405b", "llama-3.1-8b", True),
        ("gpt-4.1", "gpt-4", True),
        ("deepseek-v3", "deepseek-v2", True),
    ],
)
def test_another_model_is_told_from_another_spelling(asked, named, is_other):
    assert other_model({"model": named}, asked) == (named if is_other else "")


halves = st.text(st.characters(categories=["Cs", "Ll", "So"]), max_size=6)
values = st.recursive(
    halves | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(halves, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_no_half_of_a_pair_is_left_in_a_body(value):
    body = parsed(json.dumps(value))
    event(f"changed: {body != value}")
    assert json.dumps(body, ensure_ascii=False).encode()
    assert mended(body) == body


def test_halves_become_replacement_characters_and_pairs_one_character(tmp_path: Path):
    body = parsed('{"choices": [{"message": {"reasoning": "a \\ud83d b", "content": "\\udc00 \\ud83d\\ude00"}}]}')
    assert (thoughts_of(body), body["choices"][0]["message"]["content"]) == ("a \ufffd b", "\ufffd \U0001f600")
    session = Session("s", (Message("user", "hi"),), {"thoughts": thoughts_of(body)})
    write_rows(tmp_path / "s.jsonl", [session])
    assert read_sessions(tmp_path / "s.jsonl")[0].meta["thoughts"] == "a \ufffd b"
    assert mended("\ud83d" + "\ude00") == "\U0001f600"
