"""Stage compare: base, student and teacher on the held-out prompts, with paired intervals.

Everything is asked through the engine, so a run that was killed asks nothing twice. One model is in memory at a time:
the teacher answers every prompt once more (the ceiling) and is stopped; base and student answer, and are asked how
probable they find the teacher's answers; last, the teacher is asked that too, where its weights are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill import recipe
from distill.compare.answers import (
    Engines,
    ask_endpoint,
    ask_here,
    ask_teacher,
    ask_teacher_again,
    ask_teacher_weights,
    note_absent,
)
from distill.compare.judge import judge
from distill.compare.judge_audit import conclude
from distill.compare.lm_eval import benchmarks
from distill.compare.metrics import METRICS, Model, ModelMetric, TextMetric
from distill.compare.prompts import held_out, of_file, of_metrics, take_recorded
from distill.compare.results import MODELS, ComparisonResults, line, score_texts
from distill.compare.stats import LEVEL, RESAMPLES
from distill.compare.summary import remarks, summary, with_judge
from distill.compare.training_overlap import leaks, record_coverage, record_leaks
from distill.core import console, registry
from distill.core.files import write_json
from distill.core.jsonl import write_rows
from distill.core.student_folder import current, is_student
from distill.core.weights import read_base, student_fingerprint
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.providers import Provider
from distill.models.in_process import base_fingerprint
from distill.recipe import Benchmarks, Judging
from distill.run.context import Context, account, engine_for, identity, judge_sampling, spent, stop_teacher
from distill.run.decisive import flat, parts
from distill.run.endpoints import OTHER_ROLES, RESPONDENTS
from distill.run.record import StageRecord
from distill.types import Sampling

REVISION = 1
"""To be raised with any change of what the stage writes for the same inputs and options, shipped prompts included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Endpoints that answer in place of the trained student and its base."""

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
    """The judge and its options."""

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
    results = ComparisonResults([*shared, *of_metrics(metrics)])
    if results.prompts:
        take_recorded(results, sides.recorded)
        _ask(results, current(folder), engine, metrics, sampling, seed, sides)
        record_leaks(results, folder / "kept.jsonl")
        results.notes += remarks(results)
    else:
        sides.release_teacher()
    score_texts(results, metrics, folder)
    models = described(current(folder), results, sides)
    results.names = {model: info["model"] or "" for model, info in models.items()}
    judged = _judge(results, engine, sides.judge) if results.shared and sides.judge is not None else None
    spent = usd()
    info = summary(results, metrics, seed, spent, own=prompts is None)
    if judged is not None:
        info |= with_judge(info, conclude(results, judged, seed, spent))
    info["coverage"] = record_coverage(results, folder / "kept.jsonl")
    write_rows(folder / "answers.jsonl", (line(results, index) for index in range(len(results.prompts))))
    scores = {
        "prompts": len(results.shared),
        "held_out": prompts is None,
        "method": _method(sampling, seed, asked=not set(results.answers) <= set(sides.recorded)),
        "models": models,
        **info,
        "leaks": leaks(results),
    }
    if tasks is not None:
        scores["lm_eval"] = benchmarks(folder, tasks, seed=seed)
    write_json(folder / "scores.json", scores)
    missing = sum(results.missing.values())
    return {"prompts": len(results.shared), "answers": sum(map(len, results.answers.values())), "missing": missing}


def _ask(
    results: ComparisonResults,
    student: Path,
    engine: Engines,
    metrics: Sequence[TextMetric | ModelMetric],
    sampling: Sampling,
    seed: int,
    sides: Sides,
) -> None:
    """Ask everybody whose answers are not recorded, and every model that is at hand what the metrics want to know."""
    if sides.teachers and "teacher" not in sides.recorded:
        ask_teacher(results, engine, sides.teachers, sampling)
        if "teacher_again" not in sides.recorded:
            ask_teacher_again(results, engine, sides.teachers, sampling)
    sides.release_teacher()
    for model, provider in sides.endpoints.items():
        ask_endpoint(results, engine, model, provider, sampling)
    elsewhere = {*sides.endpoints, *sides.recorded}
    here = [model for model in MODELS[:2] if model not in elsewhere]
    if here:
        ask_here(results, engine, student, metrics, replace(sampling, seed=seed), here)
    else:
        note_absent(results, metrics, "neither base nor student is a model at hand here")
        return
    ask_teacher_weights(results, engine, metrics, sides.teacher_weights)


def _judge(results: ComparisonResults, engine: Engines, bench: Bench) -> dict[str, Any]:
    """Have the judge look at what everybody answered, and let go of a model that was served for it."""
    return judge(results, engine, bench.provider, options=bench.options, sampling=bench.sampling)


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


def described(student: Path, results: ComparisonResults, sides: Sides) -> dict[Model, dict[str, str | None]]:
    """What each model is, of those that have answers: its name, what it is here, and the fingerprint of its weights."""
    known = _trained(student)
    again = {
        "teacher": "first answers, which are compared with",
        "teacher_again": "second answer to each, sampled again",
    }
    teacher = ", ".join(Path(one.endpoint.model).name for one in sides.teachers.values())
    weights = Path(sides.teacher_weights).name if sides.teacher_weights else "teacher"
    info: dict[Model, dict[str, str | None]] = {}
    for model in MODELS:
        if not results.answers.get(model):
            continue
        if model in sides.recorded:
            info[model] = {"model": sides.recorded[model].name, "description": "recorded answers"}
        elif model in sides.endpoints:
            info[model] = {"model": sides.endpoints[model].endpoint.model, "description": "asked at its endpoint"}
        elif model in again:
            info[model] = {"model": teacher or weights, "description": f"the teacher's {again[model]}"}
        else:
            info[model] = known[model]
    return info


def _trained(student: Path) -> dict[Model, dict[str, str | None]]:
    """Base and student as they were trained here, by what their folder says."""
    if not is_student(student):
        return {}
    info = read_base(student)
    model = Path(info["model"]).name
    weights = ", 4-bit" if info["quantised"] else ""
    layers = f"{len(info['layers'])} layers of " if info["layers"] else ""
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


def options(context: Context) -> dict[str, Any]:
    """What of the recipe decides answers and scores, by key."""
    loaded, section = context.recipe, context.recipe.compare
    assert section is not None
    own = ("prompts", "system", "answers", "judge", "sampling", "lm_eval")
    return {
        "seed": loaded.seed,
        **flat(section, "compare", only=own, files=loaded.files),
        **parts([(one.metric, one.options) for one in section.metrics], "compare.metrics", files=loaded.files),
        **identity(context, (*OTHER_ROLES, *RESPONDENTS)),
        **(flat(judge_sampling(loaded), "judge.sampling") if section.judge is not None else {}),
    }


def run(context: Context, record: StageRecord) -> Mapping[str, Any]:
    """The stage compare."""
    tallies: list[Engine] = []

    def engine(providers: Mapping[str, Provider], *, progress: console.Progress, local: bool) -> Engine:
        tallies.append(engine_for(context, "compare", progress, providers, local=local))
        return tallies[-1]

    try:
        return compared(context, engine, usd=lambda: spent(context, "compare"))
    finally:
        account(context, "compare", record, tallies)


def compared(context: Context, engine: Engines, *, usd: Callable[[], float | None]) -> Mapping[str, Any]:
    """Compare as the recipe says. `usd` is called when nothing more is asked, and before anything is written."""
    pass

    section = context.recipe.compare
    assert section is not None
    metrics = [
        registry.part(METRICS, one.metric, kind="metric", allowed=context.allowed)(one.options)
        for one in section.metrics
    ]
    return compare(
        context.folder,
        engine=engine,
        journal=context.journal,
        metrics=metrics,
        sampling=_sampling(context.recipe),
        seed=context.recipe.seed,
        sides=_sides(context, section),
        prompts=Path(section.prompts) if section.prompts is not None else None,
        system=section.system,
        tasks=section.lm_eval,
        usd=usd,
    )


def _sampling(loaded: recipe.Recipe) -> Sampling:
    """How all models draw: as the section says, else as the teacher does."""
    teacher = loaded.main_teacher
    own = loaded.compare.sampling if loaded.compare is not None else None
    chosen = own or (teacher.sampling if teacher is not None else recipe.SamplingOptions())
    return chosen.sampling()


def _sides(context: Context, section: recipe.Compare) -> Any:
    """Who answers beside what was trained here."""
    pass

    hired = tuple(context.teachers.hired) if context.teachers is not None else ()
    others = context.teachers.others if context.teachers is not None else ()
    served = hired[0].section if len(hired) == 1 and hired[0].section.serve is not None else None
    return Sides(
        teachers={one.name: one.provider for one in hired},
        release_teacher=lambda: stop_teacher(context),
        teacher_weights=served.model if served is not None else None,
        endpoints={name: one.provider for one in others for name in RESPONDENTS if one.name == name},
        recorded={model: Path(path) for model, path in section.answers.items()},
        judge=_bench(context, section),
    )


def _bench(context: Context, section: recipe.Compare) -> Any:
    """The judge, where the section has one."""
    pass

    if section.judge is None or context.teachers is None:
        return None
    return Bench(context.teachers.providers["judge"], section.judge, judge_sampling(context.recipe))
