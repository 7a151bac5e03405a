"""Reads a chat response in the shapes of all common endpoints: its turn, text, thoughts and end.

Most have OpenAI's `choices`; Gemini has `candidates`, and Ollama, Cohere and Anthropic put the turn into the body.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeAlias

Ending: TypeAlias = Literal["stop", "length", "filtered", "tool", "failed", "unknown"]
"""How an answer ended: whole, cut, withheld, with a call of a tool, broken off by a fault, or in another way."""

ENDINGS: tuple[tuple[Ending, str], ...] = (
    (
        "stop",
        r"(?:natural)?stop(?:ped)?(?:sequence|word|string|token|criteria|eos)?|eos\w*|eot|end(?:of\w+|turn|token)?"
        r"|completed?|finish(?:ed)?|normal|natural|done|success",
    ),
    (
        "filtered",
        r".*(?:filter|safety|sensitiv|recitation|block|prohibit|spii|guardrail|refus|moderat|policy|toxic"
        r"|armor|violation|copyright).*|language",
    ),
    (
        "failed",
        r".*(?:error|abort|cancel|fail|malformed|unexpected|interrupt|disconnect|preempt|overload|unavailable"
        r"|insufficient|notfinished|timedout|timeout|timelimit|toomany).*|load|unload",
    ),
    ("tool", r".*(?:tool|functioncall).*|pauseturn"),
    ("length", r".*(?:length|tokens?|limit|truncat|contextwindow|incomplete|cutoff).*"),
)
"""Patterns of the words for each ending, in lower case and without other signs than letters; the first match counts.

From the API references of OpenAI, Azure, Anthropic, Bedrock, Gemini, Mistral, Cohere, DeepSeek, Zhipu, Qwen and
watsonx, and the code of vLLM, SGLang, TGI, llama.cpp, Ollama and OpenRouter.
"""
_PATTERNS = [(ending, re.compile(pattern)) for ending, pattern in ENDINGS]

_LISTS = ("choices", "candidates")
_REASONS = ("finish_reason", "finishReason")
_REASONS_OF_BODIES = (*_REASONS, "stop_reason", "done_reason")
_TEXTS = ("text", "refusal", "content", "value", "parts")
"""Keys under which a part of a content has its text."""
_THOUGHTS = ("thinking", "reasoning", "redacted_thinking", "thought")
_SILENT = (*_THOUGHTS, "tool_use", "tool_call", "tool_calls", "function_call", "reference", "citation")
"""Types of parts that are no text of the answer."""
BESIDE = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks")
"""Where endpoints put thoughts beside the content of a message."""
_THOUGHT_TEXTS = ("text", "thinking", "reasoning", "summary", "content", "parts")


def ending_of(reason: Any) -> Ending:
    """What the value of a `finish_reason` means, in any case and any provider's words.

    The last word of two counts: Gemini's endpoint says "content_filter: SAFETY".
    """
    return _ending(shown_reason(reason))


@lru_cache(maxsize=256)
def _ending(reason: str) -> Ending:
    for word in reversed(reason.split(":")):
        letters = re.sub("[^a-z]", "", word.casefold()).removeprefix("finishreason")
        for ending, pattern in _PATTERNS:
            if pattern.fullmatch(letters):
                return ending
    return "unknown"


def shown_reason(reason: Any) -> str:
    """The value as text: of an object, its `type` (SGLang); `none` where there is none."""
    value = reason.get("type") if isinstance(reason, Mapping) else reason
    return "none" if value in (None, "") else str(value)[:100]


def reason_in(body: Mapping[str, Any]) -> Any:
    """The value that says how the first choice ended; `None` where there is none."""
    choice = choice_of(body) or {}
    if (reason := choice.get("finish_reason")) is not None:
        return reason
    names = _REASONS_OF_BODIES if choice is body else _REASONS
    return next((choice[name] for name in names if choice.get(name) is not None), None)


def choice_of(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first choice of a response, or the body that takes its place; `None` where there is neither."""
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    for place in (body, body.get("output")):  # DashScope's own API nests its response
        lists = (place.get(name) for name in _LISTS) if isinstance(place, Mapping) else ()
        for choices in lists:
            if isinstance(choices, (list, tuple)) and choices and isinstance(choices[0], Mapping):
                return choices[0]
    is_turn = isinstance(body.get("message"), Mapping) or body.get("role") == "assistant"
    return body if is_turn and "choices" not in body else None


def turn_of(choice: Mapping[str, Any]) -> Any:
    """The message of a choice, which is an object or, at odd endpoints, its text."""
    turn = choice.get("message")
    turn = choice.get("delta") if turn is None else turn
    return choice if turn is None else turn


def text_of(choice: Mapping[str, Any]) -> str:
    """The text of an answer; without content, that of a refusal. Raises `ValueError` for an unknown shape."""
    turn = turn_of(choice)
    if not isinstance(turn, Mapping):
        return text_in(turn)
    if isinstance(content := turn.get("content"), str) and content:
        return content
    contents = (text_in(turn.get(name)) for name in ("content", "refusal", "text"))
    return next(filter(None, contents), "")


def has_parts(choice: Mapping[str, Any]) -> bool:
    """Whether the content of a choice is anything but a string."""
    turn = turn_of(choice)
    content = turn.get("content") if isinstance(turn, Mapping) else turn
    return not (content is None or isinstance(content, str))


def text_in(content: Any) -> str:
    """The text of a content: a string, a part such as `{"type": "text", "text": …}`, or a list of both.

    Thoughts, calls of tools and references are left out. Raises `ValueError` for anything else.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        return "".join(map(text_in, content))
    if not isinstance(content, Mapping):
        raise ValueError(f"a content of the type {type(content).__name__}")
    if content.get("type") in _SILENT or content.get("thought") is True:
        return ""
    name = next((name for name in _TEXTS if name in content), None)
    if name is None:
        raise ValueError(f"a content of the type {content.get('type')!r}")
    return text_in(content[name])


def thoughts_of(body: Mapping[str, Any]) -> str:
    """The thoughts that a response reports beside its text; its JSON is foreign, so no shape is guaranteed."""
    turn = turn_of(choice_of(body) or {})
    if not isinstance(turn, Mapping):
        return ""
    content = turn.get("content")
    parts = content.get("parts") if isinstance(content, Mapping) else content
    within = [part for part in parts if _is_thought(part)] if isinstance(parts, list) else []
    for value in (*map(turn.get, BESIDE), within):
        if value and (thoughts := _thoughts_in(value).strip()):
            return thoughts
    return ""


def _is_thought(part: Any) -> bool:
    return isinstance(part, Mapping) and (part.get("type") in _THOUGHTS or part.get("thought") is True)


def _thoughts_in(value: Any) -> str:
    if isinstance(value, list):
        return "".join(map(_thoughts_in, value))
    if isinstance(value, Mapping):
        return next(filter(None, (_thoughts_in(value.get(name)) for name in _THOUGHT_TEXTS)), "")
    return value if isinstance(value, str) else ""


_TAG = re.compile(r"(?:[-@:](?:latest|preview|exp|free|nitro|floor)|\.gguf)+$")
_VERSION = re.compile(r"[-@:](?:\d{3,8}|\d{4}-\d\d-\d\d|\d\d-\d{2,4})$")


def other_model(body: Mapping[str, Any], asked: str) -> str:
    """The model as which an endpoint answered, where that is not the one asked; empty where it is, or is not given.

    Folders, a tag (`-latest`, `:free`), and a date or a version that was not asked (`-2024-08-06`) make no other model.
    """
    named = body.get("model")
    if named == asked or not isinstance(named, str) or not named or not asked or _is_same(named, asked):
        return ""
    return named[:200]


@lru_cache(maxsize=256)
def _is_same(named: str, asked: str) -> bool:
    one, other = (_TAG.sub("", name.casefold().rstrip("/").rpartition("/")[2]) for name in (named, asked))
    return one == other or _VERSION.sub("", one) == other or one == _VERSION.sub("", other)
