"""Stage curate: sorts sessions into those to train on, those held out for compare, and those dropped, each with why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from distill import console
from distill.errors import StageIncomplete
from distill.filters import prompt_of
from distill.novelty import Neighbour, NoveltyIndex, comparable
from distill.rows import read_sessions, to_json, write_rows
from distill.text import normalise
from distill.types import RowFilter, Session, SetFilter, Verdict

Rules: TypeAlias = Sequence[tuple[str, RowFilter | SetFilter]]


@dataclass(slots=True)
class Row:
    """One session on its way through the rules."""

    session: Session
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def is_kept(self) -> bool:
        """Whether no rule has dropped it so far."""
        return all(verdict.keep for verdict in self.verdicts)

    @property
    def labels(self) -> list[str]:
        """Reasons of the verdicts that keep it and yet have something to say."""
        return [verdict.reason for verdict in self.verdicts if verdict.keep and verdict.reason != "ok"]


def curate(folder: Path, *, filters: Rules, test: int, seed: int, near: float = 0.7) -> Mapping[str, Any]:
    """Write kept.jsonl, test.jsonl and dropped.jsonl from sessions.jsonl; returns the stage's counts. Asks no model.

    Rules on a row measure every row, dropped or not. Of what they keep, `test` rows are held out (`held_out`). Rules on
    the set then run in their order over the rows still kept for training; last, rows whose prompt is near (ROUGE-L
    above `near`) that of a held-out row are dropped, with the reason `held_out`. `by_rule` counts dropped rows by the
    first verdict against them. Raises `StageIncomplete`, with everything written, when nothing is left to train on.
    """
    rows = [Row(session) for session in read_sessions(folder / "sessions.jsonl")]
    _apply_row_rules(rows, filters)
    chosen = held_out([row.session for row in rows if row.is_kept], test=test, seed=seed, near=near)
    tested = [row for row in rows if row.session.id in chosen]
    training = [row for row in rows if row.session.id not in chosen]
    _apply_set_rules(training, filters)
    _drop_near(training, tested, near)
    counts = _write(folder, rows, training, tested)
    if len(tested) < test:
        counts["test_missing"] = test - len(tested)
        console.warn(f"{len(tested)} of {test} prompts could be held out; collect more tasks, or lower collect.test")
    _require_some(counts)
    return counts


def _apply_row_rules(rows: Sequence[Row], filters: Rules) -> None:
    for name, rule in filters:
        if rule.scope == "row":
            for row in rows:
                row.verdicts.append(replace(rule.decide(rule.measure(row.session)), rule=name))


def _apply_set_rules(rows: Sequence[Row], filters: Rules) -> None:
    for name, rule in filters:
        if rule.scope == "set":
            kept = [row for row in rows if row.is_kept]
            for row, verdict in zip(kept, rule.decide_all([row.session for row in kept]), strict=True):
                row.verdicts.append(replace(verdict, rule=name))


def held_out(sessions: Sequence[Session], *, test: int, seed: int, near: float) -> set[str]:
    """Ids of the sessions to hold out: the first `test` in task order whose prompt falls on the test side.

    A prompt falls there when SHA-256 of seed and normalised prompt begins with a 0 bit, whatever else is in the set.
    So more tasks behind the same ones move no row from one side to the other, and of a small set about half is held out
    at most: fewer than `test` rows then. A prompt near one already held out is left to the training side, where it is
    dropped.
    """
    chosen: set[str] = set()
    index = _Prompts(near)
    for session in sessions:
        if len(chosen) == test:
            break
        prompt = prompt_of(session)
        if _falls_on_test_side(prompt, seed) and index.near(prompt) is None:
            index.add(session.id, prompt)
            chosen.add(session.id)
    return chosen


def _falls_on_test_side(prompt: str, seed: int) -> bool:
    return sha256(f"{seed}:{normalise(prompt)}".encode()).digest()[0] < 128


class _Prompts:
    """Prompts held out: the same but for case and white space counts as near, whatever its tokens."""

    def __init__(self, near: float) -> None:
        self._index = NoveltyIndex(near)
        self._equal: dict[str, str] = {}

    def add(self, id: str, prompt: str) -> None:
        self._index.add(id, comparable(prompt))
        self._equal[normalise(prompt)] = id

    def near(self, prompt: str) -> Neighbour | None:
        if (equal := self._equal.get(normalise(prompt))) is not None:
            return Neighbour(equal, 1.0)
        return self._index.near(comparable(prompt))


def _drop_near(training: Iterable[Row], tested: Iterable[Row], near: float) -> None:
    """Drop rows that would teach what is tested."""
    index = _Prompts(near)
    for row in tested:
        index.add(row.session.id, prompt_of(row.session))
    for row in training:
        if row.is_kept and (found := index.near(prompt_of(row.session))) is not None:
            verdict = Verdict(
                rule="test_split",
                keep=False,
                reason="held_out",
                value=found.rouge_l,
                threshold=near,
                neighbour=found.id,
            )
            row.verdicts.append(verdict)


def _write(folder: Path, rows: Sequence[Row], training: Sequence[Row], tested: Sequence[Row]) -> dict[str, Any]:
    kept = [row for row in training if row.is_kept]
    dropped = [row for row in rows if not row.is_kept]
    write_rows(folder / "kept.jsonl", map(_labelled, kept))
    write_rows(folder / "test.jsonl", map(_labelled, tested))
    write_rows(folder / "dropped.jsonl", map(_with_verdicts, dropped))
    against = Counter(f"{first.rule}/{first.reason}" for first in map(_first_against, dropped))
    labels = Counter(label for row in (*kept, *tested) for label in row.labels)
    return {
        "rows": len(rows),
        "kept": len(kept),
        "dropped": len(dropped),
        "test": len(tested),
        "labelled": sum(1 for row in (*kept, *tested) if row.labels),
        "by_rule": dict(against.most_common()),
        "labels": dict(labels.most_common()),
    }


def _first_against(row: Row) -> Verdict:
    return next(verdict for verdict in row.verdicts if not verdict.keep)


def _labelled(row: Row) -> Session:
    earlier = [label for label in row.session.meta.get("labels", []) if label not in row.labels]
    return replace(row.session, meta={**row.session.meta, "labels": [*earlier, *row.labels]})


def _with_verdicts(row: Row) -> dict[str, Any]:
    """The session with every verdict, those against it first."""
    return {**to_json(_labelled(row)), "verdicts": sorted(row.verdicts, key=lambda verdict: verdict.keep)}


def _require_some(counts: Mapping[str, Any]) -> None:
    if counts["kept"]:
        return
    if not counts["rows"]:
        raise StageIncomplete("sessions.jsonl is empty: nothing to train on; see failures.jsonl, and collect again")
    worst = next(iter(counts["by_rule"].items()), None)
    why = (
        f"{worst[0]} dropped most ({worst[1]} of {counts['rows']}, see dropped.jsonl)" if worst else "all are held out"
    )
    raise StageIncomplete(f"nothing is left to train on: {why}; loosen that rule, or collect more tasks")
