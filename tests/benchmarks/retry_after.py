"""Our engine where every request's first send is answered 429 with Retry-After, all at once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from distill.engine.mock_server import Fault, MockServer, Script, question, status
from tests.benchmarks.arena import Check, Findings, finish, ours, start

REQUESTS, RETRY_AFTER_SECONDS = 200, 5
QUICK_REQUESTS, QUICK_RETRY_AFTER_SECONDS = 50, 1
LATENCY_SECONDS = 0.05
MOST_TIMES = 1.5
"""Times as long as Retry-After alone would need, at most."""


def run(*, quick: bool) -> Findings:
    """As many in flight as there are requests; each could be answered after one wait and two latencies."""
    requests, wait = (QUICK_REQUESTS, QUICK_RETRY_AFTER_SECONDS) if quick else (REQUESTS, RETRY_AFTER_SECONDS)
    with MockServer(latency_seconds=LATENCY_SECONDS, fault=_at_first(wait)) as server:
        result = finish(start(*ours(server.url, requests, requests)), timeout_seconds=60 * wait)
    need = wait + 2 * LATENCY_SECONDS
    row = {
        "requests": requests,
        "429": server.statuses[429],
        "sends": server.count,
        "seconds": result["seconds"],
        "seconds needed": need,
        "most in flight": server.most_in_flight,
    }
    early = sum(again - before < wait for before, again in _sends(server))
    checks = [
        Check("not answered", requests - result["requests"], 0),
        Check("sent again before its time", early, 0),
        Check("times as long as Retry-After needs", result["seconds"] / need, MOST_TIMES),
    ]
    return Findings([row], checks)


def _at_first(wait: int) -> Script:
    """Refuses each question the first time."""
    seen: set[str] = set()
    refusal = status(429, {"Retry-After": str(wait)})

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        known = question(body) in seen
        seen.add(question(body))
        return None if known else refusal

    return script


def _sends(server: MockServer) -> list[tuple[float, float]]:
    """When each question came and when it came again, in seconds."""
    times: dict[str, list[float]] = {}
    for asked, at in zip(server.questions(), server.times, strict=True):
        times.setdefault(asked, []).append(at)
    return [(before, again) for sent in times.values() for before, again in pairwise(sent)]
