"""Our engine against a server that fails 30% of the requests in every way that may pass."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from distill.engine.journal.store import Journal
from distill.engine.mock_server import MockServer, Script, never
from distill.engine.mock_server import faults as failing
from tests.benchmarks.arena import Check, Findings, finish, ours, scratch, start

SHARE, SEED = 0.3, 1
IN_FLIGHT, LATENCY_SECONDS, REQUESTS = 100, 1.0, 3000
"""Without faults this takes 30 s at least."""
QUICK_LATENCY_SECONDS, QUICK_REQUESTS = 0.2, 1000
TIMEOUT_LATENCIES = 4.0
"""Of one send, in latencies."""
MOST_TIMES = 2.0
"""Times as long as without faults, at most."""
HUNG_TIMES = 20.0
"""Times as long as need be, after which it counts as hung."""


def run(*, quick: bool) -> Findings:
    """The same requests without faults and with them."""
    latency, requests = (QUICK_LATENCY_SECONDS, QUICK_REQUESTS) if quick else (LATENCY_SECONDS, REQUESTS)
    script = failing(SHARE, seed=SEED, retry_after_seconds=latency, drip_seconds=latency)
    rows = [_measure("none", never, latency, requests), _measure(f"{SHARE:.0%}", script, latency, requests)]
    checks = [
        Check("not answered", sum(requests - row["sessions"] for row in rows), 0),
        Check("answers kept beyond one a request", sum(abs(row["answers kept"] - requests) for row in rows), 0),
        Check("most answers to one question", max(row["most to one"] for row in rows), 1),
        Check("times as long with faults", rows[1]["seconds"] / rows[0]["seconds"], MOST_TIMES),
    ]
    return Findings(rows, checks)


def _measure(name: str, fault: Script, latency: float, requests: int) -> dict[str, Any]:
    with (
        MockServer(latency_seconds=latency, fault=fault, keep=False) as server,
        tempfile.TemporaryDirectory(dir=scratch()) as folder,
    ):
        journal = Path(folder) / "journal.sqlite"
        options = ("--journal", journal, "--timeout", TIMEOUT_LATENCIES * latency)
        process = start(*ours(server.url, requests, IN_FLIGHT, *options))
        result = finish(process, timeout_seconds=HUNG_TIMES * latency * requests / IN_FLIGHT + 60)
        with Journal.open(journal, read_only=True) as opened:
            answers = opened.counts()["answers"]
        served = server.stats()
    return {
        "faults": name,
        "seconds": result["seconds"],
        "sessions": result["requests"],
        "answers kept": answers,
        "sends": served["count"],
        "answered": served["answered"],
        "most to one": served["most_answers"],
        "429": served["statuses"].get("429", 0),
    }
