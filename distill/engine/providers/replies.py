"""Parses response bodies of OpenAI-compatible endpoints: answer, usage, error message."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill.core.redaction import strike
from distill.engine.providers import ProviderError, Reply, one_line
from distill.engine.providers.bounded_numbers import count_of
from distill.engine.providers.refusals import hint, plain_text
from distill.types import Finish, Usage

DEEPEST_BODY = 100
"""Nested lists and objects of a response; deeper ones could be written to the journal but not read again."""

FINISH_REASONS: dict[str, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "filtered",
    "tool_calls": "tool",
    "function_call": "tool",
}

FILTERED_WORDS = ("content_filter", "content_policy", "content management policy", "moderation", "flagged")


def cut_at_stop(reply: Reply, stop: Sequence[str]) -> Reply:
    """The reply up to the first of the request's stop strings, for endpoints that ignore them; it counts as stopped."""
    places = [place for text in stop if text and (place := reply.text.find(text)) >= 0]
    return replace(reply, text=reply.text[: min(places)], finish="stop") if places else reply


_WIDER = re.compile(r"utf-(16|32)(le|be)?", re.IGNORECASE)


def encoding_of(first: bytes, kind: str) -> str:
    """UTF-8, UTF-16 or UTF-32, by the first bytes or the header (RFC 4627, section 3)."""
    guess = json.detect_encoding(first) if b"\0" in first or first[:1] > b"\x7f" else "utf-8"
    wider = _WIDER.search(kind) if guess == "utf-8" and "utf-8" not in kind else None
    return wider[0].lower() if wider else guess


def json_object(reply: str) -> dict[str, Any]:
    """The JSON object in a body. Raises `ProviderError` where there is none, or one that is nested too deeply."""
    try:
        body = json.loads("" if _is_deep(reply) else reply)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        detail = f"the response is no JSON object: {shown(reply)}"
        raise ProviderError("malformed", detail, transient=True, hint=hint(reply))
    return body


def object_of(value: Any) -> dict[str, Any]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _is_deep(reply: str) -> bool:
    """Whether lists and objects are nested deeper than `DEEPEST_BODY`; brackets in strings do not count."""
    if reply.count("[") + reply.count("{") <= DEEPEST_BODY:
        return False
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", reply)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest > DEEPEST_BODY


def text_of(choice: Mapping[str, Any]) -> str:
    """The answer's text; without plain content, the field `refusal` or the text parts of a list."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return str(choice.get("text") or "")
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):
        return strike("".join(str(part.get("text") or "") for part in content if isinstance(part, dict)))
    return str(content)


def usage_of(reply: Any, text: str) -> Usage | None:
    """The counts as reported; `None` where they cannot be true. The engine also checks them against the request."""
    if not isinstance(reply, dict):
        return None
    prompt = count_of(reply.get("prompt_tokens"), least=1)
    completion = count_of(reply.get("completion_tokens", 0), least=1 if text else 0)
    return None if prompt is None or completion is None else Usage(prompt, completion)


def shown(body: str) -> str:
    """The beginning of a body on one line, without tags."""
    return one_line(plain_text(body), 160) or "nothing"
