"""A journal of a million answers: how long until it can be asked, beside a JSONL cache read into a dictionary."""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from distill.engine.journal.store import Journal
from tests.benchmarks.arena import Check, Findings
from tests.benchmarks.rivals import folder

ROWS, QUICK_ROWS = 1_000_000, 20_000
LOOKUPS, REPETITIONS = 1000, 3
MOST_SECONDS = 1.0
"""To open, look a thousand keys up, and close."""

FILL = """
WITH RECURSIVE number(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM number LIMIT ?)
INSERT INTO answers
SELECT printf('%064x', value), '{"prompt":"question","role":"teacher"}', '{"model":"m"}', 'answer', 'an answer', 'stop',
    '{"prompt_tokens": 10, "completion_tokens": 10}', '{}', NULL, 'collect', '2026-01-01T00:00:00.000+00:00',
    NULL
FROM number
"""


def run(*, quick: bool) -> Findings:
    """Fill both with the same keys; then open each anew and look the same keys up."""
    rows = QUICK_ROWS if quick else ROWS
    with tempfile.TemporaryDirectory(dir=folder()) as place:
        path, cache = Path(place) / "journal.sqlite", Path(place) / "cache.jsonl"
        _fill(path, cache, rows)
        keys = [f"{1 + number * (rows // LOOKUPS):064x}" for number in range(LOOKUPS)]
        ours, rival = _seconds(lambda: _journal(path, keys)), _seconds(lambda: _jsonl(cache, keys))
        size = path.stat().st_size
    row: dict[str, Any] = {
        "rows": rows,
        "MB": size / 1e6,
        "seconds, journal": ours,
        "seconds, JSONL": rival,
        "times faster": rival / ours,
    }
    return Findings([row], [Check("seconds to open and look up", ours, MOST_SECONDS)])


def _fill(path: Path, cache: Path, rows: int) -> None:
    Journal.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(FILL, (rows,))
        connection.commit()
    with cache.open("w", encoding="utf-8") as file:
        for number in range(1, rows + 1):
            file.write(f"{json.dumps({'key': f'{number:064x}', 'text': 'an answer', 'usage': {'tokens': 10}})}\n")


def _journal(path: Path, keys: list[str]) -> int:
    with Journal.open(path) as journal:
        return sum(journal.get(key) is not None for key in keys)


def _jsonl(path: Path, keys: list[str]) -> int:
    with path.open(encoding="utf-8") as file:
        found = {row["key"]: row for row in map(json.loads, file)}
    return sum(key in found for key in keys)


def _seconds(work: Callable[[], int]) -> float:
    """The median of a few."""
    times = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        assert work() == LOOKUPS
        times.append(time.perf_counter() - started)
    return median(times)
