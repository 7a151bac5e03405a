"""What a run is doing now: progress, loss, spend, newest texts and the last fault, read from its files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.core.student_folder import NEXT, current
from distill.engine.journal import viewing
from distill.engine.journal.store import NAME
from distill.errors import RunFolderError
from distill.run.record import run_record
from distill.run.scores import finite
from distill.ui import runs

LOG_BYTES = 64 << 10
"""Of the end of run.log that is read."""
LOG_LINES = 40
CURVE_POINTS = 500
"""Steps of the loss curve that are shown; of more, every second, third … one."""
CURVE_BYTES = 64 << 20
NEWEST = 3

_PROGRESS = re.compile(
    r"(?P<title>.+?): (?P<done>[\d.e+]+)(?:/(?P<total>[\d.e+]+))?(?: \w+)?, (?P<seconds>\d+) s(?:, (?P<note>.*))?"
)
"""A line of progress, as `core.console` writes it."""
_FAULT = re.compile(r"last fault: (.*)|(?:warning|error): (.*)")


def state(folder: Path) -> dict[str, Any]:
    """Everything that the page of a run shows. Raises `RunFolderError` for a damaged run.json."""
    record, recipe = run_record(folder), runs.recipe_of(folder)
    stages = runs.stages(folder, record, recipe)
    lines = _tail(folder / "run.log")
    training = _training_folder(folder, stages)
    curve = loss_curve(training / "train_log.jsonl")
    for stage in stages:
        if stage["status"] == "running":
            stage["progress"] = _progress(stage["name"], lines, curve)
    return {
        "name": folder.name,
        "status": runs.status(stages),
        "touched": runs.touched(folder),
        "stages": stages,
        "spend": runs.spend(folder, record, recipe),
        "curve": curve,
        "newest": _newest(folder, training, stages),
        "fault": _fault(folder, stages, lines),
        "log": [f"{at[11:19]} {text}" for at, text in lines[-LOG_LINES:]],
        "headline": runs.headline(folder, record),
        "files": [{"name": name, "bytes": path.stat().st_size} for name, path in runs.files(folder).items()],
        "has_report": is_own_file(folder / "report.html"),
    }


def is_own_file(path: Path) -> bool:
    """Whether there is a file, and no link, at the path."""
    return path.is_file() and not path.is_symlink()


def _tail(log: Path) -> list[tuple[str, str]]:
    """Time and text of the last whole lines of the run's log."""
    if not is_own_file(log):
        return []
    with log.open("rb") as file:
        start = max(0, log.stat().st_size - LOG_BYTES)
        file.seek(start)
        text = file.read(LOG_BYTES).decode("utf-8", "replace")
    lines = text.split("\n")[int(start > 0) : -1]
    pairs = (line.partition(" ") for line in lines if line.strip())
    return [(at, rest) for at, _, rest in pairs]


def _progress(stage: str, lines: Sequence[tuple[str, str]], curve: dict[str, Any] | None) -> dict[str, Any] | None:
    """The stage's last line of progress; of a training, with the last step of its own log, which is newer."""
    started = (f"{stage}: started", f"{stage} runs again")
    begun = max((place for place, (_, text) in enumerate(lines) if text.startswith(started)), default=-1)
    matches = (_PROGRESS.fullmatch(text) for _, text in reversed(lines[begun + 1 :]))
    match = next(filter(None, matches), None)
    said = {} if match is None else {key: value for key, value in match.groupdict().items() if value is not None}
    step = curve["last"] if stage == "train" and curve else None
    if step is not None:
        return {"title": stage, "done": step.get("step"), "total": step.get("steps"), "note": said.get("note", "")}
    if not said:
        return None
    total = float(said["total"]) if "total" in said else None
    return {"title": said["title"], "done": float(said["done"]), "total": total, "note": said.get("note", "")}


def _training_folder(folder: Path, stages: Sequence[dict[str, Any]]) -> Path:
    """The folder of the training in progress, else of the current student."""
    unfinished = any(one["name"] == "train" and one["status"] in ("running", "failed", "partial") for one in stages)
    is_next = unfinished and is_own_file(folder / NEXT / "train_log.jsonl") and not (folder / NEXT).is_symlink()
    return folder / NEXT if is_next else current(folder)


def loss_curve(log: Path) -> dict[str, Any] | None:
    """Step and loss of at most `CURVE_POINTS` steps and of all evaluations; `None` before the first step."""
    if not is_own_file(log):
        return None
    with log.open("rb") as file:
        lines = file.read(CURVE_BYTES).split(b"\n")[:-1]
    evaluations = list(_rows(line for line in lines if b'"eval_loss"' in line))
    steps = [line for line in lines if b'"eval_loss"' not in line]
    every = max(1, -(-len(steps) // CURVE_POINTS))
    trained = list(_rows([*steps[:-1:every], *steps[-1:]]))
    points = _points(trained, "loss")
    if not points:
        return None
    return {"train": points, "eval": _points(evaluations, "eval_loss"), "last": trained[-1]}


def _points(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = ((row.get("step"), finite(row.get(key))) for row in rows)
    return [(step, loss) for step, loss in pairs if isinstance(step, int) and loss is not None]


def _rows(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError, RecursionError):
            if isinstance(row := json.loads(line), dict):
                yield row


def _newest(folder: Path, training: Path, stages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest texts: what the student says in its last evaluation while it trains, else the journal's answers."""
    running = next((one["name"] for one in stages if one["status"] == "running"), "")
    if running == "train" and is_own_file(training / "samples.jsonl"):
        with (training / "samples.jsonl").open("rb") as file:
            rows = list(_rows(file.read(CURVE_BYTES).split(b"\n")))[-NEWEST:]
        return [
            {
                "what": f"step {row.get('step')}",
                "prompt": _last_text(row.get("messages")),
                "texts": {side: row[side] for side in ("student", "teacher") if isinstance(row.get(side), str)},
            }
            for row in reversed(rows)
        ]
    with suppress(RunFolderError):
        return [
            {
                "what": one.stage,
                "prompt": _last_text(one.request.get("messages")) or str(one.request.get("prompt") or ""),
                "texts": {str(one.request.get("role", "")): one.text},
            }
            for one in viewing.newest(folder / NAME, NEWEST)
        ]
    return []


def _last_text(messages: Any) -> str:
    last = messages[-1] if isinstance(messages, list) and messages else {}
    return str(last.get("content", "")) if isinstance(last, dict) else ""


def _fault(folder: Path, stages: Sequence[dict[str, Any]], lines: Sequence[tuple[str, str]]) -> dict[str, str] | None:
    """What went wrong last: a failed stage's reason, else the newer of log and journal."""
    for one in reversed(stages):
        if one["status"] in ("failed", "partial") and one.get("detail"):
            return {"what": one["name"], "text": str(one["detail"]), "at": ""}
    logged = next(((at, match) for at, text in reversed(lines) if (match := _FAULT.search(text))), None)
    failure = None
    with suppress(RunFolderError):
        failure = viewing.last_failure(folder / NAME)
    if failure is not None and (logged is None or failure.created[:19] >= logged[0][:19]):
        return {"what": f"{failure.stage}, {failure.reason}", "text": failure.detail, "at": failure.created}
    return None if logged is None else {"what": "run.log", "text": logged[1][1] or logged[1][2], "at": logged[0]}
