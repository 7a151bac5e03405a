"""Memory and CPU of our engine with its journal over many requests."""

from __future__ import annotations

from tests.benchmarks.arena import Check, Findings, fast_server, finish, ours, start

REQUESTS, QUICK_REQUESTS = 100_000, 20_000
IN_FLIGHT, LATENCY_SECONDS = 200, 0.05
MOST_MB, MOST_CPU_MS = 50.0, 0.6
MB = 2**20


def run(*, quick: bool) -> Findings:
    """Resident memory when the 10,000th flow ends and when the last does; CPU of the whole, the journal's included."""
    requests = QUICK_REQUESTS if quick else REQUESTS
    with fast_server(LATENCY_SECONDS) as url:
        result = finish(start(*ours(url, requests, IN_FLIGHT)), timeout_seconds=requests / 50)
    early, late = (result["rss_bytes"][when] / MB for when in ("early", "late"))
    cpu = 1000 * result["cpu_seconds"] / requests
    row = {
        "requests": result["requests"],
        "requests/s": round(requests / result["seconds"]),
        "MB at the 10,000th": early,
        "MB at the last": late,
        "CPU ms/request": cpu,
    }
    checks = [
        Check("not answered", requests - result["requests"], 0),
        Check("memory grows by MB", late - early, MOST_MB),
        Check("CPU ms/request", cpu, MOST_CPU_MS),
    ]
    return Findings([row], checks)
