"""Evaluates base and student on lm-evaluation-harness tasks, paired by document, to see abilities lost by training.

Results are kept in the run folder's `lm_eval/`, one row per task, under a key of everything that determines them, so
that an interrupted comparison runs no task twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distill.compare.lm_eval_tasks import Harness, run
from distill.compare.stats import mean_interval, paired_difference, sign_flip_p, with_holm
from distill.core.console import say
from distill.core.hashing import json_sha256
from distill.core.jsonl import append, rewrite, whole_rows
from distill.core.student_folder import current
from distill.core.weights import read_base, student_fingerprint
from distill.models.in_process import base_fingerprint
from distill.recipe import Benchmarks

FOLDER = "lm_eval"
SIDES = ("base", "student")

MAX_EXPLANATION = 300
"""Longest explanation in characters; a group may have a hundred tasks."""


def benchmarks(folder: Path, options: Benchmarks, *, seed: int, harness: Harness | None = None) -> dict[str, Any]:
    """The `lm_eval` entry of scores.json; tasks without results are run first.

    The package must be installed. Raises `RecipeError` for a task that is unknown or runs code, `DistillError` for one
    that fails.
    """
    package = version("lm_eval")
    settings = [package, options.limit, options.shots, options.chat]
    work = _Work(folder, options, harness)
    rows = {model: {name: work.of(model, name, settings) for name in options.tasks} for model in SIDES}
    work.release()
    student_keys = [row["key"] for some in rows["student"].values() for row in some]
    return {"package": package, **options.model_dump(), "said": student_keys, **entries(options.tasks, rows, seed)}


@dataclass(frozen=True, slots=True)
class TaskMeasure:
    """The student's numbers by one measure of a task, by document."""

    title: str
    better: str
    values: Mapping[tuple[int, str], float]


def student_measures(folder: Path, keys: Iterable[str]) -> dict[str, TaskMeasure]:
    """The student's numbers by task and measure, of the rows in lm_eval/ with these keys."""
    rows = _rows_by_key(folder / FOLDER / "student.jsonl")
    return {
        f"{row['task']} {measure}": TaskMeasure(
            _title(row["task"], measure),
            _better([row], measure),
            _values(row, measure),
        )
        for row in (rows[key] for key in keys if key in rows)
        for measure in _measures([row])
    }


class _Work:
    """Results of both models; loads the harness, and one model at a time, only for missing ones."""

    def __init__(self, folder: Path, options: Benchmarks, harness: Harness | None) -> None:
        self._student = current(folder)
        self._folder = folder / FOLDER
        self._options = options
        self._harness = harness
        self._loaded: dict[str, tuple[Any, Any]] = {}

    def of(self, model: str, name: str, settings: Sequence[Any]) -> list[dict[str, Any]]:
        """A model's rows for the tasks of a name: from the folder, else from a run."""
        path = self._folder / f"{model}.jsonl"
        weights = base_fingerprint(self._student) if model == "base" else student_fingerprint(self._student)
        key = partial(_key, weights, *settings)
        rows = _rows_by_key(path)
        if (whole := rows.get(key("name", name))) is not None:
            return [rows[key("task", task)] for task in whole["tasks"]]
        path.parent.mkdir(exist_ok=True)
        rewrite(path, list(rows.values()))  # without a row that a kill has cut off
        if self._harness is None:
            self._harness = Harness()
        tasks = self._harness.tasks(name)
        for each, task in tasks.items():
            if (here := key("task", each)) not in rows:
                say(f"lm-eval: {model} does {each}")
                rows[here] = {"key": here, **run(*self._model(model), task, self._options)}
                append(path, [rows[here]])
        append(path, [{"key": key("name", name), "name": name, "tasks": list(tasks)}])
        return [rows[key("task", each)] for each in tasks]

    def _model(self, model: str) -> tuple[Any, Any]:
        if model not in self._loaded:
            from distill.models import chat_template
            from distill.models.loading import load_student

            self.release()
            network, tokenizer = load_student(self._student, adapter=model == "student")
            tokenizer.chat_template = chat_template.jinja(str(read_base(self._student)["template"]), tokenizer)
            self._loaded[model] = network, tokenizer
        return self._loaded[model]

    def release(self) -> None:
        """Release the loaded model."""
        if self._loaded:
            from distill.models.device import free_memory

            self._loaded.clear()
            free_memory()


def _key(*parts: Any) -> str:
    return json_sha256(parts)


def _rows_by_key(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file by key, without one that a kill has cut off."""
    return {row["key"]: row for row in whole_rows(path)}


# The entry of scores.json


def entries(
    names: Sequence[str], rows: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], seed: int
) -> dict[str, Any]:
    """An entry for each measure of each name, in the form of a metric's; `p_holm` is adjusted for all of them.

    `rows`: by model and name, a row for each task that the name stands for. The documents of several tasks are pooled;
    `categories` has each task.
    """
    measures = {
        f"{name} {measure}": _entry(name, measure, {model: rows[model][name] for model in SIDES}, seed)
        for name in names
        for measure in _measures(rows["base"][name])
    }
    left_out = {row["task"]: row["left_out"] for name in names for row in rows["base"][name] if row["left_out"]}
    notes = [f"{task}: {', '.join(gone)} has no value for one document, so no pairs" for task, gone in left_out.items()]
    return {"entries": with_holm(measures), "notes": notes}


def _measures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for document in row["documents"] for name in document["values"]))


def _entry(name: str, measure: str, rows: Mapping[str, Sequence[Mapping[str, Any]]], seed: int) -> dict[str, Any]:
    pairs = {base["task"]: _pairs(measure, base, student) for base, student in zip(*rows.values(), strict=True)}
    all_pairs = [pair for some in pairs.values() for pair in some]
    parts = {task: {"n": len(some), **_figures(some, seed)} for task, some in pairs.items() if some}
    every = sum(len(_values(row, measure)) for row in rows["base"])
    versions = ", ".join(dict.fromkeys(f"{row['task']} {row['version']}" for row in rows["base"]))
    return {
        "title": _title(name, measure),
        "unit": "mean over documents",
        "better": _better(rows["base"], measure),
        "explanation": f"{len(all_pairs)} documents, each answered by both; {versions}"[:MAX_EXPLANATION],
        "note": None if len(all_pairs) == every else f"documents without a number of both: {every - len(all_pairs)}",
        **_figures(all_pairs, seed),
        "categories": with_holm(parts) if len(parts) > 1 else {},
    }


def _title(name: str, measure: str) -> str:
    metric, _, how = measure.rpartition(",")
    return f"{name}: {metric}" + ("" if how == "none" else f" ({how})")


def _better(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    metric = measure.rpartition(",")[0]
    higher = next((row["higher"][metric] for row in rows if metric in row["higher"]), None)
    return "" if higher is None else "higher" if higher else "lower"


def _values(row: Mapping[str, Any], measure: str) -> dict[tuple[int, str], float]:
    """A measure's numbers by a document's place and hash."""
    return {(one["id"], one["hash"]): one["values"][measure] for one in row["documents"] if measure in one["values"]}


def _pairs(measure: str, base: Mapping[str, Any], student: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Base's and student's number for every document that both have."""
    second = _values(student, measure)
    return [(value, second[at]) for at, value in _values(base, measure).items() if at in second]


def _figures(pairs: Sequence[tuple[float, float]], seed: int) -> dict[str, Any]:
    base, student = [one for one, _ in pairs], [one for _, one in pairs]
    return {
        "by": {"base": mean_interval(base, seed=seed), "student": mean_interval(student, seed=seed)},
        "student_minus_base": paired_difference(student, base, seed=seed),
        "p": sign_flip_p(student, base, seed=seed),
    }
