"""Stage compare: base, student and teacher on the held-out prompts, with paired intervals.

All requests go through the engine, so a run that was killed sends nothing twice. One model is in memory at a time:
the teacher answers every prompt once more (the ceiling) and is stopped; base and student answer, and compute the
likelihood of the teacher's answers; last, the teacher computes it too, where its weights are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill import recipe
from distill.compare.answers import (
    LEARNERS,
    absent_measures,
    ask_endpoint,
    ask_here,
    ask_teacher_weights,
    most_samples,
    pair_obstacle,
    sample_teacher,
)
from distill.compare.judge import judge
from distill.compare.judge_audit import conclude, judged_outcomes
from distill.compare.lm_eval import benchmarks
from distill.compare.local_model import Engines
from distill.compare.metrics import METRICS, Metric
from distill.compare.prompts import held_out, notes_on_references, of_file, of_metrics, recorded_answers
from distill.compare.results import ComparisonResults, ModelReplies, Prompt, row, score_answers
from distill.compare.stats import LEVEL, RESAMPLES
from distill.compare.summary import absence_notes, entry_of, leading, outcomes_by, remarks, summary, with_judge
from distill.compare.token_nll import by_prompt
from distill.compare.training_overlap import coverage, leak_summary, leaks
from distill.core import console, registry
from distill.core.files import write_json
from distill.core.jsonl import write_rows
from distill.core.student_folder import current, is_student
from distill.core.weights import read_base, student_fingerprint
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.providers import Provider
from distill.models.in_process import base_fingerprint, local_model
from distill.recipe import Benchmarks, Judging
from distill.run.context import Context, account, bound, engine_for, identity, judge_sampling, spent, stop_teacher
from distill.run.decisive import flat, parts
from distill.run.endpoints import OTHER_ROLES, RESPONDENTS
from distill.run.record import StageRecord
from distill.run.scores import OF_DATA
from distill.text.thinking import Handling
from distill.types import MODELS, Model, Sampling

REVISION = 2
"""To be raised with any change of what the stage writes for the same inputs and options, shipped prompts included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Endpoints that answer in place of the trained student and its base."""

    teachers: Mapping[str, Provider] = field(default_factory=dict)
    """By name in the engine. The teacher that answered a prompt answers it again, else the first of them."""
    release_teacher: Callable[[], None] = lambda: None
    """Called when the teacher's endpoint is no longer needed."""
    teacher_weights: str | None = None
    """The teacher's model in the recipe, where its weights can be loaded in this process."""
    endpoints: Mapping[Model, Provider] = field(default_factory=dict)
    """Endpoints that answer as `base` or `student`."""
    recorded: Mapping[Model, Path] = field(default_factory=dict)
    """Files of recorded answers; these models are not asked."""
    no_pairs: str | None = None
    """Why metrics of pairs have no value; None where they have, and where there is none of them."""
    judge: Bench | None = None
    thoughts: Handling = "separate"
    """How collect treats the teacher's thoughts: its answers here are compared with or without them as well."""

    @property
    def models_here(self) -> list[Model]:
        """The models among base and student that answer in this process."""
        return [model for model in LEARNERS if model not in {*self.endpoints, *self.recorded}]


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
    metrics: Sequence[Metric],
    sampling: Sampling,
    seed: int,
    sides: Sides,
    prompts: Path | None = None,
    system: str = "",
    tasks: Benchmarks | None = None,
    usd: Callable[[], float | None] = lambda: None,
) -> dict[str, int]:
    """Write answers.jsonl and scores.json of the held-out rows, or of a file of `prompts`; returns counts.

    All models use `sampling`; `seed` seeds the answers of base and student, and the resamples. `system` is the system
    message of a file's prompts. `tasks` of the lm-evaluation-harness run last, on base and student. `usd` returns the
    cost so far. Token counts of the teacher's first answers come from the journal, training rows from kept.jsonl.
    Raises `DistillError` when base and student are the same model, `RecipeError` for an unusable file of prompts or
    answers.
    """
    common_prompts = of_file(prompts, system=system) if prompts is not None else held_out(folder, journal)
    notes = notes_on_references(metrics, common_prompts)
    questions = [*common_prompts, *of_metrics(metrics)]
    if questions and sides.models_here and any(metric.scope == "pair" for metric in metrics):
        sides = replace(sides, no_pairs=pair_obstacle(sides.teacher_weights, current(folder)))
    replies = _ask(questions, current(folder), engine, metrics, sampling, seed, sides)
    results = score_answers(questions, replies, metrics, folder, seed)
    bench = sides.judge if common_prompts else None
    verdicts = judge(results, engine, bench.provider, options=bench.options, sampling=bench.sampling) if bench else None
    measures, extras = _measures(folder, results, replies, verdicts, metrics, sides, seed, usd(), own=prompts is None)
    write_rows(folder / "answers.jsonl", (row(results, index, extras) for index in range(len(questions))))
    scores = {
        "prompts": len(common_prompts),
        "held_out": prompts is None,
        "method": _method(sampling, seed, has_generated=not set(results.answers) <= set(sides.recorded)),
        **measures,
        "notes": [*notes, *measures["notes"]],
        **results.tables,
        **({"lm_eval": benchmarks(folder, tasks, seed=seed)} if tasks is not None else {}),
    }
    write_json(folder / "scores.json", scores)
    missing = sum(reply.missing for reply in replies)
    return {"prompts": len(common_prompts), "answers": sum(map(len, results.answers.values())), "missing": missing}


def _ask(
    prompts: Sequence[Prompt],
    student: Path,
    engine: Engines,
    metrics: Sequence[Metric],
    sampling: Sampling,
    seed: int,
    sides: Sides,
) -> list[ModelReplies]:
    """Replies of all models: recorded, from endpoints, and from models in this process, which give likelihoods too."""
    if not prompts:
        sides.release_teacher()
        return []
    first_answers = {index: prompt.reference for index, prompt in enumerate(prompts) if prompt.reference is not None}
    replies = [ModelReplies(model="teacher", answers=first_answers)] if first_answers else []
    replies += recorded_answers(prompts, sides.recorded)
    if sides.teachers and "teacher" not in sides.recorded:
        if len(first_answers) < len(prompts):
            replies.append(
                ask_endpoint(
                    prompts,
                    "teacher",
                    engine,
                    sides.teachers,
                    sampling,
                    first_answers=first_answers,
                    thoughts=sides.thoughts,
                )
            )
        if "teacher_again" not in sides.recorded:
            asked = ask_endpoint(
                prompts, "teacher_again", engine, sides.teachers, sampling, replica=None, thoughts=sides.thoughts
            )
            replies.append(asked)
    if (samples := most_samples(metrics)) > 1 and sides.teachers and "teacher" not in sides.recorded:
        replies = sample_teacher(
            prompts, replies, engine, sides.teachers, sampling, samples=samples, thoughts=sides.thoughts
        )
    sides.release_teacher()
    for model, provider in sides.endpoints.items():
        replies.append(ask_endpoint(prompts, model, engine, {model: provider}, sampling, samples=samples))
    if not sides.models_here:
        return replies
    references = next((reply.answers for reply in reversed(replies) if reply.model == "teacher"), None) or {}
    here = replace(sampling, seed=seed)
    teacher = local_model(sides.teacher_weights, name="teacher") if sides.teacher_weights is not None else None
    has_pairs = sides.no_pairs is None and any(metric.scope == "pair" for metric in metrics)
    try:
        beside = teacher if has_pairs else None
        replies += ask_here(prompts, references, engine, student, metrics, here, sides.models_here, beside)
        if teacher is not None:
            replies += ask_teacher_weights(prompts, references, engine, metrics, teacher)
    finally:
        if teacher is not None:
            teacher.release()
    return replies


def _measures(
    folder: Path,
    results: ComparisonResults,
    replies: Sequence[ModelReplies],
    verdicts: Mapping[int, Mapping[str, Any]] | None,
    metrics: Sequence[Metric],
    sides: Sides,
    seed: int,
    usd: float | None,
    *,
    own: bool,
) -> tuple[dict[str, Any], dict[str, Mapping[int, Any]]]:
    """Entries of scores.json, and by name the `EXTRAS` of each prompt for answers.jsonl.

    `verdicts`: the judge's, by prompt; `own`: the prompts are the run's held-out rows, not a file's.
    """
    kept, models = folder / "kept.jsonl", descriptions(current(folder), results, sides)
    absent: dict[str, str] = {}
    if results.prompts:
        absent = absent_measures(metrics, sides.models_here, sides.teacher_weights, sides.no_pairs)
    leak_entries = leaks(results.prompts, kept)
    leaked = {index for index, leak in leak_entries.items() if leak["leaked"]}
    measures = [measure for metric in metrics for measure in metric.measures] if results.prompts else []
    entries = {one.name: entry_of(results, one, seed, absent=absent.get(one.name), leaked=leaked) for one in measures}
    lead = leading(measures, entries)
    notes = [*(note for reply in replies for note in reply.notes), *absence_notes(measures, absent)]
    notes += remarks(results, [one for one in measures if one.name not in absent], entries)
    scores = summary(results, entries, lead, notes=notes, usd=usd, own=own)
    outcomes = outcomes_by(results, lead) if lead is not None else {}
    if verdicts is not None and sides.judge is not None:
        names = {model: one["model"] or "" for model, one in models.items()}
        judge_info = {"model": sides.judge.provider.endpoint.model, "mode": sides.judge.options.mode}
        scores = with_judge(scores, conclude(results, verdicts, judge_info, names, seed=seed, usd=usd))
        outcomes |= judged_outcomes(verdicts)
    nearness, nearness_by_category = coverage(results.prompts, outcomes, kept)
    extras = {
        "surprise": by_prompt({reply.model: reply.spans for reply in replies if reply.spans}),
        "leak": leak_entries,
        "judge": verdicts or {},
        "outcome": outcomes,
        "coverage": nearness,
    }
    leaks_in_all = leak_summary(results.prompts, leak_entries)
    return {"models": models, **scores, "coverage": nearness_by_category, "leaks": leaks_in_all}, extras


def _method(sampling: Sampling, seed: int, *, has_generated: bool) -> str:
    settings = [
        f"{name} {value:g}"
        for name, value in (("temperature", sampling.temperature), ("top_p", sampling.top_p))
        if value is not None
    ]
    settings += [f"at most {sampling.max_tokens} tokens"] if sampling.max_tokens else []
    how = (
        f"all models drew with {', '.join(settings) or 'default sampling'}"
        if has_generated
        else "all answers were recorded"
    )
    return (
        f"means over prompts; {LEVEL:.0%} expanded percentile intervals from {RESAMPLES:,} resamples of the prompts "
        f"(seed {seed}), differences paired by prompt; {how}"
    )


def descriptions(student: Path, results: ComparisonResults, sides: Sides) -> dict[Model, dict[str, str | None]]:
    """Name, description and, where it was trained here, weight fingerprint of each model that has answers."""
    trained_here = _descriptions_here(student)
    again = {
        "teacher": "first answers, which are compared with",
        "teacher_again": "second answer to each, sampled again",
    }
    teacher = ", ".join(Path(one.endpoint.model).name for one in sides.teachers.values())
    weights = Path(sides.teacher_weights).name if sides.teacher_weights else "teacher"
    by_model: dict[Model, dict[str, str | None]] = {}
    for model in MODELS:
        if not results.answers.get(model):
            continue
        if model in sides.recorded:
            by_model[model] = {"model": sides.recorded[model].name, "description": "recorded answers"}
        elif model in sides.endpoints:
            by_model[model] = {"model": sides.endpoints[model].endpoint.model, "description": "asked at its endpoint"}
        elif model == "teacher" and not (sides.teachers or sides.teacher_weights):
            by_model[model] = {"model": "data", "description": OF_DATA}
        elif model in again:
            by_model[model] = {"model": teacher or weights, "description": f"the teacher's {again[model]}"}
        else:
            by_model[model] = trained_here[model]
    return by_model


def _descriptions_here(student: Path) -> dict[Model, dict[str, str | None]]:
    """Base and student as the student's folder describes them; empty without one."""
    if not is_student(student):
        return {}
    base = read_base(student)
    model = Path(base["model"]).name
    weights = ", 4-bit" if base["quantised"] else ""
    layers = f"{len(base['layers'])} layers of " if base["layers"] else ""
    previous: dict[Model, dict[str, str | None]] = {}
    if (before := base.get("previous")) is not None:
        name = Path(before["run"]).name
        previous["previous"] = {
            "model": model,
            "description": f"the student of {name}, which was trained further",
            "fingerprint": before["fingerprint"],
        }
    return {
        **previous,
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
    """Options of the recipe that decide answers and scores, by key."""
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
        endpoints, part = bound(context, providers), ", ".join(providers)
        tallies.append(engine_for(context, "compare", progress, endpoints, local=local, part=part))
        return tallies[-1]

    section = context.recipe.compare
    assert section is not None
    metrics = [
        registry.part(METRICS, one.metric, kind="metric", allowed=context.options.allowed)(one.options)
        for one in section.metrics
    ]
    try:
        return compare(
            context.folder,
            engine=engine,
            journal=context.journal,
            metrics=metrics,
            sampling=sampling_of(context.recipe),
            seed=context.recipe.seed,
            sides=_sides(context, section),
            prompts=Path(section.prompts) if section.prompts is not None else None,
            system=section.system,
            tasks=section.lm_eval,
            usd=lambda: spent(context, "compare"),
        )
    finally:
        account(context, "compare", record, tallies)


def sampling_of(loaded: recipe.Recipe) -> Sampling:
    """Sampling of all models: the section's, else the teacher's."""
    teacher = loaded.main_teacher
    own = loaded.compare.sampling if loaded.compare is not None else None
    return (own or (teacher.sampling if teacher is not None else recipe.SamplingOptions())).sampling()


def _sides(context: Context, section: recipe.Compare) -> Sides:
    """Endpoints, recorded answers and judge of the recipe."""
    teachers, others = context.teachers.all, context.teachers.others
    server = teachers[0].section if len(teachers) == 1 and teachers[0].section.serve is not None else None
    bench = None
    judge = context.teachers.endpoints.get("judge")
    if section.judge is not None and judge is not None:
        bench = Bench(judge.provider, section.judge, judge_sampling(context.recipe))
    return Sides(
        teachers={one.name: one.provider for one in teachers},
        release_teacher=lambda: stop_teacher(context),
        teacher_weights=server.model if server is not None else None,
        endpoints={name: one.provider for one in others for name in RESPONDENTS if one.name == name},
        recorded={model: Path(path) for model, path in section.answers.items()},
        judge=bench,
        thoughts=getattr(getattr(context.recipe.collect, "options", None), "thoughts", "separate"),
    )
