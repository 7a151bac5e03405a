"""Parses response bodies of OpenAI-compatible endpoints: answer, usage, error message."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill.core.redaction import strike
from distill.core.surrogates import parsed
from distill.engine.providers import ProviderError, Reply, one_line
from distill.engine.providers.bounded_numbers import count_of
from distill.engine.providers.refusals import hint, message_of, plain_text
from distill.engine.providers.streams import merged
from distill.text import chat_replies
from distill.types import Completion, Failure, Finish, Usage

DEEPEST_BODY = 100
"""Nested lists and objects of a response; deeper ones could be written to the journal but not read again."""

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


def json_object(reply: str) -> tuple[dict[str, Any], str | None]:
    """The JSON object in a body, without lone surrogates, and its JSON; or what a stream amounts to, and `None`.

    Raises `ProviderError` where there is neither, or one that is nested too deeply.
    """
    if not _is_deep(reply):
        try:
            body = parsed(reply)
        except ValueError:
            body = reply
        if isinstance(body, dict):
            return body, reply
        if (whole := merged(body)) is not None:
            return whole, None
    detail = f"the response is no JSON object: {shown(reply)}"
    raise ProviderError("malformed", detail, transient=True, hint=hint(reply))


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


def answer_in(body: Mapping[str, Any]) -> tuple[str, Finish]:
    """Text and end of the first choice.

    Raises a transient `ProviderError` where there is no choice, where it broke off (`aborted`), and where its content
    has no plain meaning (`malformed`).
    """
    choice = chat_replies.choice_of(body)
    if choice is None:
        raise ProviderError("malformed", f"no choices in the response: {shown(json.dumps(body))}", transient=True)
    reason = chat_replies.reason_in(body)
    if (finish := chat_replies.ending_of(reason)) == "failed":
        detail = f'the answer broke off, with the finish_reason "{chat_replies.shown_reason(reason)}"'
        raise ProviderError("aborted", detail, transient=True)
    try:
        return strike(chat_replies.text_of(choice)), finish
    except ValueError as error:
        raise ProviderError("malformed", f"no text in the response: {error}", transient=True) from error


def reread(completion: Completion, request_json: str) -> Completion | Failure:
    """A journalled answer as it is read today: an earlier version did not know every end and shape of a response.

    `request_json` is the request's. The stored text stays unless it is empty or its content was no string.
    """
    choice = chat_replies.choice_of(completion.raw)
    if choice is None:
        return completion
    try:
        if (error := error_in(completion.raw)) is not None:
            raise ProviderError("aborted", f"the answer broke off: {message_of(json.dumps({'error': error}))[0]}")
        if completion.text and completion.finish != "unknown" and not chat_replies.has_parts(choice):
            return completion
        text, finish = answer_in(completion.raw)
    except ProviderError as fault:
        return Failure(key=completion.key, reason=fault.reason, detail=fault.detail, transient=False)
    if completion.finish == "unknown":
        completion = replace(completion, finish=finish)
    if completion.text and not chat_replies.has_parts(choice):
        return completion
    stop = json.loads(request_json).get("sampling", {}).get("stop", ())
    cut = cut_at_stop(Reply(text=text, finish=completion.finish), stop)
    return replace(completion, text=cut.text, finish=cut.finish)


def error_in(body: Mapping[str, Any]) -> Any:
    """The error in a response of HTTP 200, of its body or of its first choice; `None` where there is none."""
    for place in (body, chat_replies.choice_of(body) or {}):
        error = place if place.get("object") == "error" else place.get("error")
        if error and (not isinstance(error, dict) or any(error.values())):
            return error
    return None


def status_of(error: Any) -> int:
    """The HTTP status that an error in a response of HTTP 200 names; 200 where it names none."""
    named = (count_of(object_of(error).get(name), least=400, most=599) for name in ("code", "status"))
    return next(filter(None, named), 200)


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
