"""Run folders below one folder: which there are, and what each run has come to, read from its files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from distill.core.hashing import json_sha256
from distill.core.student_folder import NEXT, STUDENT
from distill.engine.journal import viewing
from distill.engine.journal.records import StageSends
from distill.engine.journal.store import NAME
from distill.errors import DistillError, RunFolderError
from distill.recipe.yaml_reader import read_yaml
from distill.run.layout import STAGES
from distill.run.reading import validated
from distill.run.record import ACCEPTABLE, RunRecord, read_record, run_record
from distill.run.remarks import stale
from distill.run.scores import read_scores

Stamp = tuple[int, int, int]
"""Inode, size and time of a file: it has changed where these have."""
_WATCHED = (
    "run.json", "run.log", "recipe.yaml", "scores.json", "report.html", NAME, f"{NAME}-wal", STUDENT, NEXT,
    f"{NEXT}/train_log.jsonl", f"{NEXT}/samples.jsonl", ".",
)  # fmt: skip
"""Files and folders of a run whose change the page shows."""


@dataclass(frozen=True, slots=True)
class RunsFolder:
    """The folder that holds the runs, or one run's own folder."""

    root: Path

    def folders(self) -> dict[str, Path]:
        """The run folders by name; a link is none, as it may lead elsewhere."""
        if _is_run(self.root):
            return {self.root.name: self.root}
        try:
            inside = sorted(self.root.iterdir())
        except OSError as error:
            raise RunFolderError(f"cannot read {self.root}: {error.strerror}") from error
        return {folder.name: folder for folder in inside if not folder.is_symlink() and _is_run(folder)}

    def folder(self, name: str) -> Path:
        """The folder of a run. Raises `RunFolderError` for a name that no run has."""
        try:
            return self.folders()[name]
        except KeyError:
            raise RunFolderError(f'there is no run "{name}" in {self.root}') from None

    def list(self) -> list[dict[str, Any]]:
        """A summary of each run, the last changed first."""
        runs = [_summary_or_fault(name, folder) for name, folder in self.folders().items()]
        return sorted(runs, key=lambda run: -float(run["touched"]))

    def mark(self) -> str:
        """A text that changes when the list does."""
        return json_sha256([[ascii(name), mark(folder)] for name, folder in self.folders().items()])


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def files(folder: Path) -> dict[str, Path]:
    """The JSONL files of a run by name, in the order of the stages; links are left out."""
    order = [name for stage in STAGES.values() for name in stage.outputs]
    held = [*folder.glob("*.jsonl"), *folder.glob("student*/*.jsonl"), *folder.glob("lm_eval/*.jsonl")]
    own = {
        path.relative_to(folder).as_posix(): path
        for path in held
        if path.is_file() and not path.is_symlink() and not path.parent.is_symlink()
    }
    return {name: own[name] for name in sorted(own, key=lambda one: (order.index(one) if one in order else 99, one))}


def file_of(folder: Path, name: str) -> Path:
    """One of a run's JSONL files. Raises `RunFolderError` for any other name."""
    try:
        return files(folder)[name]
    except KeyError:
        raise RunFolderError(f'the run has no file "{name}" of rows') from None


def stamp(path: Path) -> Stamp | None:
    """The stamp of a file; `None` where there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def mark(folder: Path) -> str:
    """A text that changes with any file of the run that the page shows."""
    return json_sha256([stamp(folder / name) for name in _WATCHED])


def touched(folder: Path) -> float:
    """When the run last wrote, in seconds since 1970."""
    stamps = filter(None, (stamp(folder / name) for name in _WATCHED if name != "."))
    return max((at for _, size, at in stamps if size), default=0) / 1e9


# --- one run


def recipe_of(folder: Path) -> Mapping[str, Any]:
    """The run's recipe as written; empty where it cannot be read."""
    return _recipe(folder / "recipe.yaml", stamp(folder / "recipe.yaml"))


@lru_cache(maxsize=1_000)
def _recipe(path: Path, _stamp: Stamp | None) -> Mapping[str, Any]:
    try:
        return read_yaml(path)
    except DistillError:
        return {}


def stages(folder: Path, record: RunRecord, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages that the recipe has or that have run, in order, each with what run.json says of it.

    A finished one is `stale` where its rows or recipe have changed since; while a stage runs, none is looked at.
    """
    has = {"report": True, "collect": bool(recipe.get("collect") or recipe.get("sources"))}
    names = [name for name in STAGES if has.get(name, recipe.get(name) is not None) or name in record.stages]
    found = [{"name": name, **_stage(record, name)} for name in names]
    is_running = any(one["status"] == "running" for one in found)
    changed = {} if is_running else stale(folder, read_record(folder), ignored=[STUDENT])  # weights take long to hash
    return [one | {"status": "stale"} if one["status"] == "done" and one["name"] in changed else one for one in found]


def _stage(record: RunRecord, name: str) -> dict[str, Any]:
    entry = record.stages.get(name)
    if entry is None:
        return {"status": "waiting"}
    counts = {key: value for key, value in entry.counts.items() if isinstance(value, (int, float))}
    return {
        "status": entry.status,
        "started": entry.started,
        "seconds": entry.seconds,
        "counts": counts,
        "tokens": sum(entry.tokens.values()),
        "detail": entry.detail,
    }


def status(of: list[dict[str, Any]]) -> str:
    """One word for a run: that of its unfinished or stale stage, `done`, or `stopped` between two stages."""
    words = ["done" if one["status"] == "partial" and one.get("detail") == ACCEPTABLE else one["status"] for one in of]
    first = next((word for word in ("running", "failed", "partial", "stale") if word in words), None)
    return first or ("done" if words and "waiting" not in words else "stopped")


def spend(folder: Path, record: RunRecord, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """USD spent, of collect too, what is in flight at most, and the caps; `None` for a sum or a cap that there is not.

    While a stage runs, the journal says what is spent: run.json counts what is in flight with the most it may cost.
    """
    document = read_record(folder)
    sent, lost = (_usd_by_stage(folder, document.get(key, {})) for key in ("sent", "lost"))
    by_stage = {name: entry.usd for name, entry in record.stages.items() if entry.usd is not None}
    by_stage |= {name: usd for name, usd in sent.items() if usd or name in by_stage}
    in_flight = 0.0
    if by_stage and any(entry.status == "running" for entry in record.stages.values()):
        with suppress(RunFolderError):
            settled, in_flight = viewing.spent(folder / NAME)
            by_stage = {name: settled.get(name, 0.0) + lost.get(name, 0.0) for name in settled | lost}
    collect = recipe.get("collect")
    return {
        "usd": sum(by_stage.values()) if by_stage else None,
        "in_flight": in_flight,
        "cap": recipe.get("budget_usd"),
        "collect": by_stage.get("collect", 0.0),
        "collect_cap": collect.get("budget_usd") if isinstance(collect, dict) else None,
    }


def _usd_by_stage(folder: Path, sends: Any) -> dict[str, float]:
    return {name: one.usd for name, one in validated(dict[str, StageSends], sends, folder / "run.json").items()}


def headline(folder: Path, record: RunRecord) -> str | None:
    """The last comparison's headline, with a remark where a training has begun since."""
    scores = read_scores(folder)
    if scores is None:
        return None
    compare, train = record.stages.get("compare"), record.stages.get("train")
    is_old = compare is not None and train is not None and compare.started < train.started
    return f"Of an earlier student: {scores.headline}" if is_old else scores.headline


def _summary_or_fault(name: str, folder: Path) -> dict[str, Any]:
    try:
        return {"name": name, "touched": touched(folder), **_summary(folder, mark(folder))}
    except DistillError as error:
        return {"name": name, "touched": touched(folder), "status": "unreadable", "fault": str(error)}


@lru_cache(maxsize=1_000)
def _summary(folder: Path, _mark: str) -> Mapping[str, Any]:
    record, recipe = run_record(folder), recipe_of(folder)
    ordered = stages(folder, record, recipe)
    student = recipe.get("student")
    return {
        "status": status(ordered),
        "stages": [{"name": one["name"], "status": one["status"]} for one in ordered],
        "spend": spend(folder, record, recipe),
        "teacher": ", ".join(str(one.get("model")) for one in record.all_teachers),
        "student": student.get("model") if isinstance(student, dict) else None,
        "headline": headline(folder, record),
    }
