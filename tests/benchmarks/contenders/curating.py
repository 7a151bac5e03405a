"""Contender: the stage curate with all rules that ask no model, or its MinHash rule alone; its time and memory."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from distill import assets, curate
from distill.filters import FILTERS
from distill.rows import read_sessions
from distill.shelf import part

BOTH: dict[str, Any] = {"on": "both"}
RULES: list[tuple[str, dict[str, Any]]] = [
    ("length", {"min_words": 1, "max_words": 2000}),
    ("empty", {}),
    ("truncated", {}),
    ("format", {}),
    ("refusal", {"drop": True}),
    ("keyword", {"words": ["image", "graph", "picture", "file", "map", "draw", "plot", "video", "music", "diagram"]}),
    ("language", {}),
    ("repetition", {}),
    ("pii", {"action": "mask"}),
    ("contamination", {"files": [str(assets.find("prompts/seeds/general.jsonl"))]}),
    ("exact_duplicate", {}),
    ("minhash", BOTH),
    ("near_duplicate", {}),
    ("quota", {"share": 0.2}),
    ("selection", {"count": 1000}),
]


class Timed:
    """A rule with a watch; nothing else is changed."""

    def __init__(self, name: str, rule: Any, seconds: Counter[str]) -> None:
        self._name, self._rule, self._seconds = name, rule, seconds

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._rule, attribute)
        if attribute not in ("measure", "decide_all", "mend"):
            return found

        def timed(*given: Any) -> Any:
            started = time.perf_counter()
            value = found(*given)
            self._seconds[self._name] += time.perf_counter() - started
            return value

        return timed


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minhash", action="store_true")
    given = parser.parse_args()
    sys.stdout.write(f"{json.dumps(_alone(given.folder) if given.minhash else _whole(given.folder))}\n")


def _whole(folder: Path) -> dict[str, Any]:
    seconds: Counter[str] = Counter()
    started = time.perf_counter()
    filters = [(name, Timed(name, _rule(name, options), seconds)) for name, options in RULES]
    counts = curate.curate(folder, filters=filters, test=200, seed=7)
    spent, cpu = time.perf_counter() - started, time.process_time()
    by_rule = {name: round(each, 1) for name, each in seconds.most_common()}
    told = {"by_rule": by_rule, "verdicts": counts["by_rule"], "labels": counts["labels"]}
    return {
        "rows": counts["rows"],
        "dropped": counts["dropped"],
        "seconds": spent,
        "cpu": cpu,
        "mb": _megabytes(),
        **told,
    }


def _alone(folder: Path) -> dict[str, Any]:
    """Over sessions in memory, as the rival has them."""
    sessions = read_sessions(folder / "sessions.jsonl")
    rule = _rule("minhash", BOTH)
    started, before = time.perf_counter(), time.process_time()
    dropped = sum(not verdict.keep for verdict in rule.decide_all(sessions))
    spent, cpu = time.perf_counter() - started, time.process_time() - before
    return {"rows": len(sessions), "dropped": dropped, "seconds": spent, "cpu": cpu, "mb": _megabytes()}


def _rule(name: str, options: dict[str, Any]) -> Any:
    filter = part(FILTERS, name, kind="filter")
    return filter(filter.Options(**options))


def _megabytes() -> float:
    """The most that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
