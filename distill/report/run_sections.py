"""Run sections of the report: funnel, time, cost and loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.report.numbers import AxisScale, Row, number, ticks
from distill.run.record import RunRecord, StageRecord
from distill.run.scores import finite

MAX_POINTS = 400
"""Most points drawn of a loss curve; a longer one is thinned to every k-th point and the last."""


def headline(record: RunRecord) -> str:
    """The headline of a run without a comparison."""
    if "train" in record.stages:
        return "The student has not been compared with its teacher yet."
    if sessions := record.counts("collect").get("sessions"):
        return f"{number(sessions)} answers collected; no student has been trained on them yet."
    return "Nothing has been collected yet."


def warning(name: str, stage: StageRecord) -> str:
    """The notice about a stage that is not done."""
    return ": ".join(filter(None, [f"{name} is {stage.status}", stage.detail]))


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of the funnel."""

    label: str
    rows: int
    kind: str
    """`asked` (the way there), `kept`, or taken out of what was kept before: `lost`, `test`."""
    start: float = 0.0
    """Percent of the longest bar, as is `length`."""
    length: float = 0.0


def funnel_bars(record: RunRecord) -> list[Bar]:
    """The bars of the funnel, from seeds to training rows; empty ones are left out."""
    expand, collect, curate = (record.counts(name) for name in ("expand", "collect", "curate"))
    bars = [
        Bar("seed tasks", expand.get("seeds") or 0, "asked"),
        Bar("requests for new tasks", expand.get("requests") or 0, "asked"),
        Bar("candidate tasks", expand.get("candidates") or 0, "kept"),
        *_losses("rejected", expand.get("rejected")),
        Bar("tasks", expand.get("tasks") or collect.get("tasks") or 0, "kept"),
        Bar("failed: no answer", collect.get("failed") or 0, "lost"),
        Bar("answered sessions", collect.get("sessions") or curate.get("rows") or 0, "kept"),
        *_losses("dropped", curate.get("by_rule")),
        Bar("held out for the comparison", curate.get("test") or 0, "test"),
        Bar("kept for training", curate.get("kept") or 0, "kept"),
        Bar("trained on", record.counts("train").get("rows") or 0, "kept"),
    ]
    return [bar for bar in bars if bar.rows]


def _losses(verb: str, reasons: Mapping[str, int] | None) -> list[Bar]:
    """A bar per reason, the most frequent first."""
    rows_by_reason = sorted((reasons or {}).items(), key=lambda item: (-item[1], item[0]))
    return [Bar(f"{verb}: {_reason(reason)}", rows, "lost") for reason, rows in rows_by_reason]


def _reason(code: str) -> str:
    """`length/too_short` in words: too short (length)."""
    rule, _, reason = code.replace("_", " ").rpartition("/")
    return f"{reason} ({rule})" if rule not in ("", reason) else reason


def with_places(bars: Sequence[Bar]) -> Iterator[Bar]:
    """The bars with their positions: a loss lies under the end of the bar that it is taken from."""
    longest = max((bar.rows for bar in bars), default=0)
    remaining = 0
    for bar in bars:
        is_loss = bar.kind in ("lost", "test")
        remaining = max(0, remaining - bar.rows) if is_loss else bar.rows
        start = remaining if is_loss else 0
        yield replace(bar, start=round(100 * start / longest, 2), length=round(100 * bar.rows / longest, 2))


_SUMMED = ("seconds", "asked", "replayed", "failed", "prompt", "completion", "usd")


def stage_row(name: str, stage: StageRecord) -> dict[str, Any]:
    """A stage's line of the table of time and tokens."""
    figures = {"seconds": stage.seconds, "usd": stage.usd, **stage.requests, **stage.tokens}
    numbers = {key: figures.get(key) for key in _SUMMED}
    return {"name": name, "status": stage.status, **numbers, "peak_memory_bytes": stage.peak_memory_bytes}


def total(table: Sequence[Row]) -> dict[str, Any]:
    """Sums over the stages that have the figure, and the highest memory peak."""
    figures = {key: [row[key] for row in table if row[key] is not None] for key in (*_SUMMED, "peak_memory_bytes")}
    sums = {key: sum(figures[key]) if figures[key] else None for key in _SUMMED}
    return {"name": "total", "status": "", **sums, "peak_memory_bytes": max(figures["peak_memory_bytes"], default=None)}


_LOGGED = ("step", "steps", "loss", "eval_loss", "learning_rate", "tokens", "seconds")
_EVALUATED = ("step", "eval_loss", "stop_rate", "length_ratio", "rows")


def curve(log: Sequence[Row]) -> dict[str, Any] | None:
    """The loss in nats per token over the steps; steps without a finite loss are counted, not drawn."""
    steps: list[dict[str, Any]] = [{key: row.get(key) for key in _LOGGED} for row in log if "step" in row]
    points = [row for row in steps if finite(row["loss"]) is not None]
    evaluations = [row for row in steps if finite(row["eval_loss"]) is not None]
    if not points:
        return None
    every = math.ceil(len(points) / MAX_POINTS)
    losses = [row["loss"] for row in points] + [row["eval_loss"] for row in evaluations]
    x_ticks = ticks(0, max(row["step"] for row in points + evaluations), least=1)
    y_ticks = ticks(min(losses), max(losses))
    return {
        "points": points[::every] + ([points[-1]] if (len(points) - 1) % every else []),
        "every": every,
        "evaluations": evaluations,
        "watched": [{key: finite(row.get(key)) for key in _EVALUATED} for row in log if row.get("event") == "eval"],
        "unfinite": sum(row["loss"] is not None for row in steps) - len(points),
        "x": AxisScale(x_ticks[0], x_ticks[-1]),
        "y": AxisScale(y_ticks[0], y_ticks[-1], flip=True),
        "x_ticks": x_ticks,
        "y_ticks": y_ticks,
    }
