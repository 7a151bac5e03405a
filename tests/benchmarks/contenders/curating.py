"""Contender: the stage curate with all rules that ask no model, or its MinHash rule alone; its time and memory."""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.core import assets
from distill.core.jsonl import read_jsonl, read_sessions, write_rows
from distill.core.registry import part
from distill.curate import stage as stage_module
from distill.curate.filters import FILTERS, prompt_of
from distill.run.measuring import measured
from distill.run.record import StageRecord
from distill.text.tokens import normalise
from distill.types import Session

BOTH: dict[str, Any] = {"on": "both"}
SPLIT = {"test": 200, "seed": 7}
GREEDY = ("minhash", "near_duplicate", "quota")
"""Of rows that are near each other, or of one source, the first stays: there the order counts."""
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
    parser.add_argument("what", choices=("whole", "by_rule", "orders", "minhash"))
    given = parser.parse_args()
    found = {"whole": _whole, "by_rule": _by_rule, "orders": _orders, "minhash": _alone}[given.what](given.folder)
    sys.stdout.write(f"{json.dumps(found)}\n")


def _whole(folder: Path) -> dict[str, Any]:
    """As a run has it; memory and CPU time are those of all its processes together."""
    record = StageRecord()
    with measured(record):
        started = time.perf_counter()
        counts = stage_module.curate(folder, filters=[(name, _rule(name, options)) for name, options in RULES], **SPLIT)
        spent = time.perf_counter() - started
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "rows": counts["rows"],
        "dropped": counts["dropped"],
        "seconds": spent,
        "cpu": time.process_time() + children.ru_utime + children.ru_stime,
        "mb": (record.peak_memory_bytes or 0) / 2**20,
        "verdicts": counts["by_rule"],
        "labels": counts["labels"],
    }


def _by_rule(folder: Path) -> dict[str, float]:
    """Seconds that each rule takes of this process, when there is no other."""
    seconds: Counter[str] = Counter()
    filters: Any = [(name, Timed(name, _rule(name, options), seconds)) for name, options in RULES]
    stage_module.curate(folder, filters=filters, processes=1, **SPLIT)
    return {name: round(each, 1) for name, each in seconds.most_common()}


def _orders(folder: Path) -> dict[str, int]:
    """Rows on which a row rule decides otherwise, and prompts chosen otherwise, when the sessions come in any order."""
    sessions = read_sessions(folder / "sessions.jsonl")
    outcomes = [_outcome(folder, sessions)]
    random.Random(7).shuffle(sessions)
    outcomes.append(_outcome(folder, sessions))
    (verdicts, kept), (others, chosen) = outcomes
    return {
        "rows": len(sessions),
        "verdicts": sum(verdicts[id] != others[id] for id in verdicts),
        "kept": len(kept ^ chosen),
    }


def _outcome(folder: Path, sessions: Sequence[Session]) -> tuple[dict[str, Any], set[str]]:
    """The verdicts of the rules on a row, by id, and the prompts that are kept, each but for case and white space."""
    write_rows(folder / "sessions.jsonl", sessions)
    filters = [(name, _rule(name, options)) for name, options in RULES if name not in GREEDY]
    rows = {name for name, rule in filters if rule.scope == "row"}
    stage_module.curate(folder, filters=filters, test=0, seed=7)
    verdicts = {
        row["id"]: [one for one in row["verdicts"] if one["rule"] in rows]
        for name in ("kept", "dropped")
        for row in read_jsonl(folder / f"{name}.jsonl")
    }
    return verdicts, {normalise(prompt_of(each)) for each in read_sessions(folder / "kept.jsonl")}


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
