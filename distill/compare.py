"""The compare stage: base, student and teacher on the held-out prompts, side by side, with paired intervals.

Everything is asked through the engine, so a run that was killed asks nothing twice. One model is in memory at a time:
the teacher answers every prompt once more (the ceiling) and is stopped; base and student answer, and are asked how
probable they find the teacher's answers; last, the teacher is asked that too, where its weights are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.comparing import MODELS
from distill.comparing.asking import (
    Engines,
    ask_endpoint,
    ask_here,
    ask_teacher,
    ask_teacher_again,
    ask_teacher_weights,
    note_absent,
)
from distill.comparing.audit import conclude
from distill.comparing.benchmarks import benchmarks
from distill.comparing.coverage import tell_coverage
from distill.comparing.entries import summary, with_judge
from distill.comparing.found import Found, line, score_texts
from distill.comparing.judging import judge
from distill.comparing.leaks import leaks, tell_leaks
from distill.comparing.prompts import held_out, of_file, of_metrics, take_recorded
from distill.comparing.remarks import remarks
from distill.embedded import read_base, student_fingerprint
from distill.journal import Journal
from distill.metrics import Model, ModelMetric, TextMetric
from distill.providers import Provider
from distill.recipe import Benchmarks, Judging
from distill.rows import write_json, write_rows
from distill.stats import LEVEL, RESAMPLES
from distill.student.inprocess import base_fingerprint
from distill.students import current, is_student
from distill.types import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Who answers beside the student that was trained here, and its base."""

    teachers: Mapping[str, Provider] = field(default_factory=dict)
    """By their names in the engine. Who answered a prompt answers a second time, else the first."""
    release_teacher: Callable[[], None] = lambda: None
    """Is called when it is not needed any more."""
    teacher_weights: str | None = None
    """The teacher as a recipe names it, where it can be loaded here."""
    endpoints: Mapping[Model, Provider] = field(default_factory=dict)
    """Endpoints that answer as `base` or `student`."""
    recorded: Mapping[Model, Path] = field(default_factory=dict)
    """Files of answers; these models are not asked for any."""
    judge: Bench | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """Who judges, and how."""

    provider: Provider
    options: Judging
    sampling: Sampling


def compare(
    folder: Path,
    *,
    engine: Engines,
    journal: Journal,
    metrics: Sequence[TextMetric | ModelMetric],
    sampling: Sampling,
    seed: int,
    sides: Sides,
    prompts: Path | None = None,
    system: str = "",
    tasks: Benchmarks | None = None,
    usd: Callable[[], float | None] = lambda: None,
) -> dict[str, int]:
    """Write answers.jsonl and scores.json of the held-out rows, or of a file of `prompts`; returns counts.

    All models draw with `sampling`; `seed` decides the draws of base and student, and the resamples. `system` goes
    before the prompts of a file. `tasks` are of the lm-evaluation-harness: base and student do them last. `usd` tells
    what was spent so far. Reads the journal for what is known of the teacher's first answers, and kept.jsonl for what
    the student was trained on. Raises `DistillError` when base and student are the same model, `RecipeError` for a
    file of prompts or answers that does not fit.
    """
    shared = of_file(prompts, system=system) if prompts is not None else held_out(folder, journal)
    found = Found([*shared, *of_metrics(metrics)])
    if found.prompts:
        take_recorded(found, sides.recorded)
        _ask(found, current(folder), engine, metrics, sampling, seed, sides)
        tell_leaks(found, folder / "kept.jsonl")
        found.notes += remarks(found)
    else:
        sides.release_teacher()
    score_texts(found, metrics, folder)
    models = described(current(folder), found, sides)
    found.names = {model: told["model"] or "" for model, told in models.items()}
    judged = _judge(found, engine, sides.judge) if found.shared and sides.judge is not None else None
    spent = usd()
    told = summary(found, metrics, seed, spent, own=prompts is None)
    if judged is not None:
        told |= with_judge(told, conclude(found, judged, seed, spent))
    told["coverage"] = tell_coverage(found, folder / "kept.jsonl")
    write_rows(folder / "answers.jsonl", (line(found, index) for index in range(len(found.prompts))))
    scores = {
        "prompts": len(found.shared),
        "held_out": prompts is None,
        "method": _method(sampling, seed, asked=not set(found.answers) <= set(sides.recorded)),
        "models": models,
        **told,
        "leaks": leaks(found),
    }
    if tasks is not None:
        scores["lm_eval"] = benchmarks(folder, tasks, seed=seed)
    write_json(folder / "scores.json", scores)
    missing = sum(found.missing.values())
    return {"prompts": len(found.shared), "answers": sum(map(len, found.answers.values())), "missing": missing}


def _ask(
    found: Found,
    student: Path,
    engine: Engines,
    metrics: Sequence[TextMetric | ModelMetric],
    sampling: Sampling,
    seed: int,
    sides: Sides,
) -> None:
    """Ask everybody whose answers are not recorded, and every model that is at hand what the metrics want to know."""
    if sides.teachers and "teacher" not in sides.recorded:
        ask_teacher(found, engine, sides.teachers, sampling)
        if "teacher_again" not in sides.recorded:
            ask_teacher_again(found, engine, sides.teachers, sampling)
    sides.release_teacher()
    for model, provider in sides.endpoints.items():
        ask_endpoint(found, engine, model, provider, sampling)
    elsewhere = {*sides.endpoints, *sides.recorded}
    here = [model for model in MODELS[:2] if model not in elsewhere]
    if here:
        ask_here(found, engine, student, metrics, replace(sampling, seed=seed), here)
    else:
        note_absent(found, metrics, "neither base nor student is a model at hand here")
        return
    ask_teacher_weights(found, engine, metrics, sides.teacher_weights)


def _judge(found: Found, engine: Engines, bench: Bench) -> dict[str, Any]:
    """Have the judge look at what everybody answered, and let go of a model that was served for it."""
    return judge(found, engine, bench.provider, options=bench.options, sampling=bench.sampling)


def _method(sampling: Sampling, seed: int, *, asked: bool) -> str:
    drawn = [
        f"{name} {value:g}"
        for name, value in (("temperature", sampling.temperature), ("top_p", sampling.top_p))
        if value is not None
    ]
    drawn += [f"at most {sampling.max_tokens} tokens"] if sampling.max_tokens else []
    how = f"all models drew with {', '.join(drawn) or 'default sampling'}" if asked else "all answers were recorded"
    return (
        f"means over prompts; {LEVEL:.0%} expanded percentile intervals from {RESAMPLES:,} resamples of the prompts "
        f"(seed {seed}), differences paired by prompt; {how}"
    )


def described(student: Path, found: Found, sides: Sides) -> dict[Model, dict[str, str | None]]:
    """What each model is, of those that have answers: its name, what it is here, and the fingerprint of its weights."""
    known = _trained(student)
    again = {"teacher": "first answers, which are compared with", "teacher_again": "second answer to each, drawn anew"}
    teacher = ", ".join(Path(one.endpoint.model).name for one in sides.teachers.values())
    weights = Path(sides.teacher_weights).name if sides.teacher_weights else "teacher"
    told: dict[Model, dict[str, str | None]] = {}
    for model in MODELS:
        if not found.answers.get(model):
            continue
        if model in sides.recorded:
            told[model] = {"model": sides.recorded[model].name, "description": "recorded answers"}
        elif model in sides.endpoints:
            told[model] = {"model": sides.endpoints[model].endpoint.model, "description": "asked at its endpoint"}
        elif model in again:
            told[model] = {"model": teacher or weights, "description": f"the teacher's {again[model]}"}
        else:
            told[model] = known[model]
    return told


def _trained(student: Path) -> dict[Model, dict[str, str | None]]:
    """Base and student as they were trained here, by what their folder says."""
    if not is_student(student):
        return {}
    told = read_base(student)
    model = Path(told["model"]).name
    weights = ", 4-bit" if told["quantised"] else ""
    layers = f"{len(told['layers'])} layers of " if told["layers"] else ""
    return {
        "base": {
            "model": model,
            "description": f"the student before training: {layers}{model}{weights}",
            "fingerprint": base_fingerprint(student),
        },
        "student": {
            "model": model,
            "description": "the same after training",
            "fingerprint": student_fingerprint(student),
        },
    }
