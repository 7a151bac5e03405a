"""Parses rate-limit headers: seconds to wait, remaining quota, time of reset."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from distill.engine.providers.bounded_numbers import number_of

LONGEST_SECONDS = 1e9
"""A longer wait is read as this one, 32 years."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_EPOCH_SECONDS, _EPOCH_MILLISECONDS = 1e9, 1e12
"""A reset that large is a moment, not a duration."""


@dataclass(frozen=True, slots=True)
class RemainingQuota:
    """Remaining quota of one limit."""

    amount: float
    """Requests or tokens."""
    reset_seconds: float | None = None
    """Until the limit is whole again; `None` where the endpoint does not say."""
    limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitReport:
    """Rate-limit information of one response."""

    requests: RemainingQuota | None = None
    tokens: RemainingQuota | None = None


def report(headers: Mapping[str, str]) -> RateLimitReport | None:
    """Read `x-ratelimit-*-requests` and `-tokens` as OpenAI, Groq, Together and vLLM gateways send them, else the
    plain `x-ratelimit-*` and `ratelimit-*` of many proxies, which count requests. `None` where none is sent.

    `headers` looks names up without regard to case.
    """
    requests = _quota(headers, "x-ratelimit-{}-requests")
    requests = requests or _quota(headers, "x-ratelimit-{}") or _quota(headers, "ratelimit-{}")
    tokens = _quota(headers, "x-ratelimit-{}-tokens")
    return RateLimitReport(requests=requests, tokens=tokens) if requests or tokens else None


def _quota(headers: Mapping[str, str], pattern: str) -> RemainingQuota | None:
    remaining = headers.get(pattern.format("remaining"))
    if remaining is None or (amount := _amount(remaining)) is None:
        return None
    reset, limit = headers.get(pattern.format("reset")), _amount(headers.get(pattern.format("limit"), ""))
    return RemainingQuota(amount, None if reset is None else duration_seconds(reset, _now(headers)), limit)


def _now(headers: Mapping[str, str]) -> float:
    """Seconds since the epoch by the endpoint's own clock, so that a wrong clock here does no harm; else by ours."""
    try:
        return parsedate_to_datetime(headers.get("Date", "")).timestamp()
    except (ValueError, OverflowError):
        return time.time()


def _amount(reply: str) -> float | None:
    return number_of(reply.split(",", maxsplit=1)[0].split(";", maxsplit=1)[0], most=_EPOCH_MILLISECONDS)


def duration_seconds(reply: str, now: float | None = None) -> float | None:
    """`6m0s`, `120ms`, `59.7` (seconds) or a moment since the epoch, as seconds from `now`; `None` if unreadable."""
    now = time.time() if now is None else now
    text = reply.strip().lower()
    if _NUMBER.fullmatch(text.removeprefix("-")):
        number = float(text)
        if number >= _EPOCH_SECONDS:
            number = number / (1000 if number >= _EPOCH_MILLISECONDS else 1) - now
        return _bounded(number)
    parts = _DURATION.findall(text)
    if parts and "".join(amount + unit for amount, unit in parts) == text:
        return _bounded(sum(float(amount) * _UNITS[unit] for amount, unit in parts))
    return _date_seconds(text, now)


def _date_seconds(reply: str, now: float) -> float | None:
    try:
        return _bounded(parsedate_to_datetime(reply).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _bounded(seconds: float) -> float:
    return min(max(0.0, seconds), LONGEST_SECONDS)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After`, which may be an HTTP date (RFC 9110 §10.2.3).

    `None` without a readable one. `headers` looks names up without regard to case.
    """
    for name, unit in (("retry-after-ms", 0.001), ("Retry-After", 1.0)):
        reply = headers.get(name, "").strip()
        if _NUMBER.fullmatch(reply):
            return _bounded(float(reply) * unit)
    return _date_seconds(headers.get("Retry-After", ""), _now(headers))
