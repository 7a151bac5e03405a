"""Kills our engine at random moments and starts it again, until all is done: what is lost, what is bought twice."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

from distill.engine.journal.store import Journal
from distill.engine.mock_server import MockServer
from tests.benchmarks.arena import Check, Findings, finish, ours, scratch, start

REQUESTS, KILLS = 5000, 20
QUICK_REQUESTS, QUICK_KILLS = 500, 4
IN_FLIGHT, LATENCY_SECONDS = 64, 0.05
LONGEST_SECONDS = 300.0
POLL_SECONDS = 0.002


def run(*, quick: bool, seed: int = 0) -> Findings:
    """SIGKILL when random numbers of answers were served, or up to 1 s after a start that comes later than that."""
    requests, kills = (QUICK_REQUESTS, QUICK_KILLS) if quick else (REQUESTS, KILLS)
    chance = random.Random(seed)
    moments = sorted(chance.sample(range(1, requests), kills))
    with (
        MockServer(latency_seconds=LATENCY_SECONDS, keep=False) as server,
        tempfile.TemporaryDirectory(dir=scratch()) as folder,
    ):
        journal = Path(folder) / "journal.sqlite"

        def begin() -> Popen[str]:
            return start(*ours(server.url, requests, IN_FLIGHT, "--journal", journal))

        in_flight = [_kill(server, moment, begin, chance.random()) for moment in moments]
        result = finish(begin(), timeout_seconds=LONGEST_SECONDS)
        with Journal.open(journal, read_only=True) as opened:
            answers = opened.counts()["answers"]
        served = server.stats()
    return _findings(requests, in_flight, result, answers, served)


def _kill(server: MockServer, moment: int, begin: Callable[[], Popen[str]], late: float) -> int | None:
    """Kill one run; the requests in flight at the server just before, or `None` where the run had ended."""
    passed = server.answered >= moment
    with begin() as process:
        deadline = time.monotonic() + (late if passed else LONGEST_SECONDS)
        while time.monotonic() < deadline and process.poll() is None and (passed or server.answered < moment):
            time.sleep(POLL_SECONDS)
        in_flight = server.in_flight if process.poll() is None else None
        process.kill()
    while server.in_flight:
        time.sleep(POLL_SECONDS)
    return in_flight


def _findings(
    requests: int, in_flight: list[int | None], result: dict[str, Any], answers: int, served: dict[str, Any]
) -> Findings:
    killed = [count for count in in_flight if count is not None]
    extra = served["answered"] - requests
    row = {
        "requests": requests,
        "kills": len(killed),
        "in flight, at most": IN_FLIGHT * len(killed),
        "in flight at the server": sum(killed),
        "served": served["answered"],
        "served again": extra,
        "again a kill": extra / len(killed),
        "sessions": result["requests"],
        "answers kept": answers,
    }
    checks = [
        Check("sessions missing", requests - result["requests"], 0),
        Check("answers kept beyond one a request", abs(answers - requests), 0),
        Check("served again, at most what was in flight", extra, IN_FLIGHT * len(killed)),
        Check("kills", len(killed), len(in_flight), at_least=True),
    ]
    return Findings([row], checks)
