"""What an endpoint's headers say: durations in every usual form, remainders under every usual name."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from distill.engine.providers.rate_limit_headers import (
    RateLimitReport,
    RemainingQuota,
    duration_seconds,
    report,
    retry_after_seconds,
)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("120ms", 0.12),
        ("1h2m3.5s", 3723.5),
        ("1d", 86400.0),
        ("59.7", 59.7),
        ("0", 0.0),
        ("-5", 0.0),
        ("soon", None),
        ("", None),
        ("6 minutes", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_a_duration_is_read_in_every_usual_form(said: str, seconds: float | None) -> None:
    assert duration_seconds(said) == (pytest.approx(seconds) if seconds is not None else None)


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "date"])
def test_a_moment_is_seconds_from_now(form: str) -> None:
    then = time.time() + 90
    said = {"seconds": f"{then:.0f}", "milliseconds": f"{then * 1000:.0f}", "date": formatdate(then, usegmt=True)}
    assert duration_seconds(said[form]) == pytest.approx(90, abs=2)


@given(st.text())
def test_no_text_raises_and_no_duration_is_negative(said: str) -> None:
    assert (duration_seconds(said) or 0.0) >= 0.0
    assert retry_after_seconds({"Retry-After": said}) is None or retry_after_seconds({"Retry-After": said}) >= 0.0


def test_requests_and_tokens_are_told_apart_whatever_the_case() -> None:
    headers = CIMultiDict(
        {
            "X-RateLimit-Limit-Requests": "500",
            "X-RateLimit-Remaining-Requests": "499",
            "X-RateLimit-Reset-Requests": "120ms",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "6m0s",
        }
    )
    assert report(headers) == RateLimitReport(
        requests=RemainingQuota(499, 0.12, 500), tokens=RemainingQuota(0, 360.0, None)
    )


@pytest.mark.parametrize("prefix", ["x-ratelimit", "ratelimit"])
def test_plain_names_count_requests(prefix: str) -> None:
    assert report(CIMultiDict({f"{prefix}-remaining": "3, 5;w=60", f"{prefix}-reset": "7"})) == RateLimitReport(
        requests=RemainingQuota(3, 7.0, None)
    )


@pytest.mark.parametrize("headers", [{}, {"x-ratelimit-remaining-requests": "many"}, {"x-ratelimit-reset": "3"}])
def test_without_a_remainder_there_is_no_report(headers: dict[str, str]) -> None:
    assert report(CIMultiDict(headers)) is None


def test_milliseconds_go_before_seconds() -> None:
    assert retry_after_seconds({"retry-after-ms": "250", "Retry-After": "1"}) == 0.25
