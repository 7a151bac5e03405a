"""What an endpoint's error says: its message in plain words, and advice where it may concern every request."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from distill.engine.providers import one_line

_MESSAGES = (
    "message", "msg", "error_message", "error_msg", "errmsg", "err_msg", "status_msg", "error_description",
    "faultstring", "detail", "details", "description", "reason", "title", "errors", "error",
)  # fmt: skip
"""The fields in which servers put an error's message, those with the most words first."""
_CODES = {"code", "type", "status", "reason", "error", "error_code", "status_code", "title", "__type"}
_DEEPEST, _MOST_ITEMS, _MOST_CHARACTERS = 8, 3, 10_000
"""Levels of an error, items of a list and characters of a text that are read."""
_TAGS = re.compile(r"(?is)<(script|style|svg)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)|<[^>]*>")
_CDATA = re.compile(r"(?is)<!\[CDATA\[(.*?)\]\]>")

KEY = "check the key in the environment variable that api_key_env names"
FIREWALL = "a firewall or proxy refuses the request: check base_url, the network and the key"
CREDIT = "the account has no credit left; add some and run again"
ADDRESS = "check base_url, which usually ends in /v1"
STREAM = "it answers with a stream, which was not asked for: turn that off there, or use another model"
_CREDIT = re.compile(
    r"insufficient[\s_-]*(quota|balance|credit|fund)|billing[\s_-]*hard[\s_-]*limit|credit balance is too low"
    r"|payment required|arrearage|余额不足|欠费",
    re.IGNORECASE,
)
_MODEL = re.compile(
    r"model[\s_-]*not[\s_-]*(found|exist)|(no such|unknown|invalid) model\b|模型不存在"
    r"|\bmodel\b.{0,80}?\b(not exist|not found|not be found|not available|no access)",
    re.IGNORECASE,
)
_SECRET = (
    r"((api|access|auth|bearer|secret|security|subscription|server|session)[\s_-]*(key|token|secret)s?"
    r"|authori[sz]ation|authentication|credentials?|jwt)"
)
_REFUSED = (
    r"(not[\s_-]*valid|no longer valid|invalid|incorrect|wrong|expired|revoked|missing|not found|no\b|not provided"
    r"|required)"
)
_KEY = re.compile(
    rf"\b{_SECRET}\b.{{0,60}}?{_REFUSED}|{_REFUSED}\b.{{0,30}}?\b{_SECRET}|invalid[\s_-]*token\b|api_?key_?invalid"
    r"|token (is |has )?(expired|invalid)|unauthori[sz]ed\b|unauthenticated"
    r"|authentication[\s_-]*(error|fail)|login fail|身份验证|鉴权"
    r"|无效的?\s*(令牌|密钥|api)|(令牌|密钥|key)\s*(无效|已?过期|错误|不正确)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"(unexpected|unknown|unsupported|no such|invalid) (url|route|path|endpoint)\b|\bno route\b|route not found"
    r"|(url|path|endpoint) (was )?not found|cannot (post|get) /|method not allowed",
    re.IGNORECASE,
)
_STREAM = re.compile(r"only supports? (the )?stream|stream(ing)? (mode )?(only|is required|must be)", re.IGNORECASE)
TRANSIENT = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which another send may help."""
_NEVER_PERMANENT = re.compile(r"http_(3\d\d|40[1-5]|407)")


def advice(status: int, body: str, words: str, *, model: str) -> str:
    """What to do where an endpoint may refuse every request: for its key, credit, model or address; else empty.

    `words` are the body's message and codes.
    """
    if status == 402 or _CREDIT.search(words):
        return CREDIT
    may_pass = status in TRANSIENT or status >= 500
    if (_MODEL.search(words) and not may_pass) or (status == 404 and "model" in words.lower()):
        return f'check the name of the model, "{model}"'
    if status == 407 or (status == 403 and is_page(body)):
        return FIREWALL
    if status in {401, 403} or _KEY.search(words):
        return KEY
    if status in {404, 405} or (_ADDRESS.search(words) and not may_pass):
        return ADDRESS
    return STREAM if _STREAM.search(words) and not may_pass else ""


def hint(body: str) -> str:
    """What a body that is no answer shows of the address; empty where it shows nothing."""
    if is_page(body):
        return f"that is a web page: {ADDRESS}"
    return STREAM if body.lstrip().startswith(("data:", "event:")) else ""


def is_page(body: str) -> bool:
    """Whether a body is a web page."""
    return re.match(r"\s*<(!doctype html|html|head|title|body|h1|!--)", body, re.IGNORECASE) is not None


def concerns_all(reason: str, detail: str) -> bool:
    """Whether a recorded failure was one of authentication or of the address, which the next run may find mended."""
    return bool(_NEVER_PERMANENT.fullmatch(reason) or (reason.startswith("http_") and advice(0, "", detail, model="")))


def message_of(body: str) -> tuple[str, str]:
    """An error body's message in plain words, and its codes; of no JSON, the text without tags."""
    document = _parsed(body)
    if document is None:
        return plain_text(body) or "nothing", ""
    return _words(document, 0) or "nothing", " ".join(_codes(document, 0))


def plain_text(body: str) -> str:
    """The beginning of a text on one line, without the tags, styles and scripts of HTML or XML."""
    text = _TAGS.sub(" ", _CDATA.sub(r"\1", body[:_MOST_CHARACTERS]))
    return one_line(html.unescape(text), _MOST_CHARACTERS)


def _parsed(text: str) -> Any:
    """The JSON value in a text; `None` where there is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _words(value: Any, depth: int) -> str:
    """The message in a value: the most telling field of an object, or all its fields; empty where there is none."""
    if depth > _DEEPEST or value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        nested = _parsed(value) if value.lstrip()[:1] in ("{", "[") else None
        return _words(nested, depth + 1) if nested else plain_text(value)
    if isinstance(value, list):
        items = [words for item in value[:_MOST_ITEMS] if (words := _words(item, depth + 1))]
        return "; ".join(dict.fromkeys(items))
    return _words_of_object(value, depth) if isinstance(value, dict) else str(value)


def _words_of_object(value: Mapping[str, Any], depth: int) -> str:
    fields = {name.lower(): item for name, item in value.items()}
    inner = [item for name in ("error", "errors") if isinstance(item := fields.get(name), dict | list)]
    candidates = [*inner, *(fields[name] for name in _MESSAGES if isinstance(fields.get(name), str | dict | list))]
    for words in filter(None, (_words(item, depth + 1) for item in candidates)):
        place = fields.get("loc")
        where = f"{'.'.join(map(str, place))}: " if isinstance(place, list) else ""
        upstream = fields.get("metadata")  # OpenRouter's field for the error of the provider behind it
        cause = _words(upstream.get("raw"), depth + 1) if isinstance(upstream, dict) else ""
        return f"{where}{words}{': ' + cause if cause else ''}"
    pairs = [(name, _words(item, depth + 1)) for name, item in value.items()]
    return ", ".join([f"{name}: {words}" for name, words in pairs if words][: 2 * _MOST_ITEMS])


def _codes(value: Any, depth: int) -> Iterator[str]:
    """The codes, types and statuses anywhere in a value."""
    if isinstance(value, list) and depth < _DEEPEST:
        for item in value[:_MOST_ITEMS]:
            yield from _codes(item, depth + 1)
    elif isinstance(value, dict) and depth < _DEEPEST:
        for name, item in value.items():
            if name.lower() in _CODES and isinstance(item, str | int):
                yield one_line(str(item), 80)
            yield from _codes(item, depth + 1)
