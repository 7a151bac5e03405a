"""Faults of the mock server, and scripts that schedule them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MOST_429 = 0.04
"""Largest share of all requests that `faults` answers with 429; of a few thousand requests, under 5% then get one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in place of an answer; `drip` is an answer that is sent slowly."""

    kind: Literal["status", "hang", "reset", "truncated", "drip"]
    code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    seconds: float = 0.0
    """How long a drip takes."""


def status(code: int, headers: Mapping[str, str] | None = None, body: Any = None) -> Fault:
    """An HTTP status with `body`, or an error body of OpenAI's shape."""
    reply = {"error": {"message": f"this is a {code}", "type": "test"}} if body is None else body
    text = reply if isinstance(reply, str) else json.dumps(reply)
    return Fault("status", code, {"Content-Type": "application/json", **(headers or {})}, text)


def drip(seconds: float) -> Fault:
    """The right answer, its body sent a few bytes at a time over this many seconds."""
    return Fault("drip", seconds=seconds)


def error_body(message: str, kind: str, code: str | None) -> dict[str, Any]:
    """OpenAI's error body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


HANG = Fault("hang")
RESET = Fault("reset")
TRUNCATED = Fault("truncated")
SLOW_DRIP = drip(0.5)
HTML = Fault("status", 200, {"Content-Type": "text/html"}, "<html><title>Bad gateway</title><p>try later</p></html>")
EMPTY = Fault("status", 200, {"Content-Type": "application/json"}, '{"choices": []}')
BAD_REQUEST = status(400, body=error_body("max_tokens is too large", "invalid_request_error", None))
UNAUTHORISED = status(401, body=error_body("Incorrect API key provided", "invalid_request_error", "invalid_api_key"))
NO_MODEL = status(404, body=error_body("The model `m` does not exist", "invalid_request_error", "model_not_found"))
FAULTS = (*map(status, (500, 502, 503, 408, 409, 425)), RESET, TRUNCATED, HTML, EMPTY, HANG)
"""Every transient fault except rate limits."""

Script = Callable[[int, dict[str, Any]], Fault | None]
"""From a request's number (0, 1, … in order of arrival) and its body to a fault, or `None` to answer."""


def never(number: int, body: dict[str, Any]) -> Fault | None:
    """Answers everything."""
    return None


def first(count: int, fault: Fault) -> Script:
    """The fault at the first `count` requests."""
    return lambda number, body: fault if number < count else None


def asking(text: str, fault: Fault) -> Script:
    """The fault whenever the question contains `text`."""
    return lambda number, body: fault if text in question(body) else None


def some(share: float, fault: Fault, *, seed: int = 0) -> Script:
    """The fault at a share of the requests, 0 to 1, drawn from the request's number."""
    return lambda number, body: fault if _draw(seed, number).random() < share else None


def faults(share: float, *, seed: int = 0, retry_after_seconds: float = 1.0, drip_seconds: float = 0.5) -> Script:
    """Every transient fault at a share of the requests, 0 to 1, drawn from the request's number.

    All are equally frequent, except that 429, with and without Retry-After, takes at most `MOST_429` of all requests.
    As many requests as have any one fault are answered in drips.
    """
    waits = [status(429), status(429, {"Retry-After": f"{retry_after_seconds:g}"})]
    each = share / (len(FAULTS) + len(waits))
    waiting = min(MOST_429, each * len(waits))

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        chance = _draw(seed, number)
        at = chance.random()
        if at < share:
            return chance.choice(waits if at < waiting else FAULTS)
        return drip(drip_seconds) if at < share + each else None

    return script


def _draw(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed}:{number}")


def question(body: Mapping[str, Any]) -> str:
    """The last question in a request's body."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def echo(body: Mapping[str, Any]) -> str:
    """The default answer."""
    return f"answer to {question(body)}"
