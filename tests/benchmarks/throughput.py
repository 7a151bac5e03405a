"""Requests a second and CPU a request on one core, of ours, a bare aiohttp loop, the OpenAI SDK and curator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks import rivals
from tests.benchmarks.arena import Check, Findings, fast_server, finish, ours, start

LONGEST_SECONDS = 300.0
"""Of one contender's run; beyond, the benchmark fails."""
PACE = 1500
"""Requests a second that ours should reach with its journal at 200 in flight, and at 1,000 no less than there."""


@dataclass(frozen=True, slots=True)
class Case:
    """One load."""

    in_flight: int
    latency_seconds: float
    requests: int

    def __str__(self) -> str:
        return f"{self.in_flight} at {self.latency_seconds * 1000:g} ms"


CASES = (Case(1000, 1.0, 10_000), Case(200, 0.05, 20_000), Case(1000, 0.05, 20_000))
SHARES = {"bare aiohttp": 1.0, "ours": 1.0, "openai": 0.2, "curator": 0.2}
"""Of a case's requests, what each contender is given: a slow one needs fewer to show its pace."""
QUICK = 0.1
"""Of the requests, in quick mode, but never fewer than are in flight."""


def run(*, quick: bool) -> Findings:
    """Every contender in turn, several times over, so that a slow minute of the machine meets all of them."""
    found = Findings()
    pythons = {"openai": rivals.python("openai"), "curator": rivals.python("curator")}
    names = [name for name in SHARES if pythons.get(name, Path()) is not None]
    found.notes += [f"left out: {name}" for name in SHARES if name not in names]
    for case in CASES:
        with fast_server(case.latency_seconds) as url:
            rounds = [
                {name: _measure(name, case, url, quick=quick, python=pythons.get(name)) for name in names}
                for _ in range(2 if quick else 5)
            ]
        found.rows += [_row(case, name, rounds) for name in names]
    found.checks = _checks(found.rows)
    return found


def _measure(name: str, case: Case, url: str, *, quick: bool, python: Path | None) -> dict[str, Any]:
    wanted = case.requests * SHARES[name] * (QUICK if quick else 1.0)
    requests = max(int(wanted), case.in_flight)
    if name == "ours":
        process = start(*ours(url, requests, case.in_flight))
    else:
        script = {"bare aiohttp": "bare", "openai": "openai_sdk"}.get(name, name)
        counts = ("--url", url, "--requests", requests, "--concurrency", case.in_flight)
        process = start(script, *counts, python=python)
    result = finish(process, timeout_seconds=LONGEST_SECONDS)
    if result["requests"] != requests:
        raise RuntimeError(f"{name} was answered {result['requests']} of {requests} requests")
    return result


def _row(case: Case, name: str, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    results = [one[name] for one in rounds]
    return {
        "case": str(case),
        "contender": name,
        "version": results[0]["version"],
        "requests": results[0]["requests"],
        "requests/s": round(median(map(_pace, results))),
        "CPU ms/request": median(1000 * result["cpu_seconds"] / result["requests"] for result in results),
        "over bare": median(_pace(one[name]) / _pace(one["bare aiohttp"]) for one in rounds),
        "ours over it": median(_pace(one["ours"]) / _pace(one[name]) for one in rounds),
    }


def _checks(rows: list[dict[str, Any]]) -> list[Check]:
    """Ours is ahead of every rival that uses a library, fast enough, and does not fall as more are in flight."""
    ahead = [
        Check(f"{row['case']}: ours over {row['contender']}", row["ours over it"], 1.0, at_least=True)
        for row in rows
        if row["contender"] not in {"ours", "bare aiohttp"}
    ]
    paces = {row["case"]: row["requests/s"] for row in rows if row["contender"] == "ours"}
    few, many = paces[str(CASES[1])], paces[str(CASES[2])]
    pace = Check(f"{CASES[1]}: requests/s", few, PACE, at_least=True)
    return [*ahead, pace, Check(f"{CASES[2]} over {CASES[1]}", many / few, 1.0, at_least=True)]


def _pace(result: dict[str, Any]) -> float:
    """Requests a second."""
    return float(result["requests"] / result["seconds"])
