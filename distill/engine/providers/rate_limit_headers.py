"""Parses rate-limit headers: seconds to wait, remaining quota, time of reset."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
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
    if remaining is None or (amount := _number(remaining)) is None:
        return None
    reset, limit = headers.get(pattern.format("reset")), headers.get(pattern.format("limit"))
    return RemainingQuota(
        amount, None if reset is None else duration_seconds(reset), None if limit is None else _number(limit)
    )


def _number(reply: str) -> float | None:
    try:
        number = float(reply.split(",", maxsplit=1)[0].split(";", maxsplit=1)[0])
    except ValueError:
        return None
    return number if 0 <= number < _EPOCH_MILLISECONDS else None


def duration_seconds(reply: str) -> float | None:
    """`6m0s`, `120ms`, `59.7` (seconds) or a moment since the epoch, as seconds from now; `None` if unreadable."""
    text = reply.strip().lower()
    try:
        number = float(text)
    except ValueError:
        parts = _DURATION.findall(text)
        whole = "".join(amount + unit for amount, unit in parts) == text and bool(parts)
        return sum(float(amount) * _UNITS[unit] for amount, unit in parts) if whole else _date_seconds(text)
    if number >= _EPOCH_MILLISECONDS:
        number = number / 1000 - time.time()
    elif number >= _EPOCH_SECONDS:
        number -= time.time()
    return max(0.0, number) if number < _EPOCH_SECONDS else None


def _date_seconds(reply: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(reply).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After`, which may be an HTTP date (RFC 9110 §10.2.3).

    `None` without a readable one.
    """
    values = {name.lower(): value.strip() for name, value in headers.items()}
    if re.fullmatch(r"\d+(\.\d+)?", milliseconds := values.get("retry-after-ms", "")):
        return float(milliseconds) / 1000
    reply = values.get("retry-after", "")
    return float(reply) if re.fullmatch(r"\d+(\.\d+)?", reply) else _date_seconds(reply)
