"""What each stage is to the pipeline: the call that does it, the files it reads and writes, and what makes it stale."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import console, embedded, recipe, shelf
from distill.engine.budget import Budget, Price, spent_usd
from distill.engine.drive import Engine
from distill.errors import RecipeError
from distill.filters import FILTERS
from distill.fingerprints import file_sha256
from distill.journal import Journal
from distill.metrics import METRICS
from distill.providers import Provider
from distill.recipe import Recipe
from distill.run import STAGES, Run, StageRecord
from distill.strategies import STRATEGIES

SHARED_SOURCES = ("distill.types", "distill.rows", "distill.text")
STUDENT_SOURCES = tuple(
    f"distill.student.{name}" for name in ("batches", "generate", "inprocess", "likelihood", "models")
)
IN_PROCESS_BATCH = 32
ACCEPTABLE = "failures within collect.max_failed"


@dataclass(slots=True)
class Context:
    """What the stages of one invocation share."""

    run: Run
    recipe: Recipe
    journal: Journal
    retry_failed: bool
    accept_partial: bool
    allowed: Collection[str]
    teacher: Any | None
    """The teacher's provider; a local one starts its server at the first request."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run.folder


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage as the pipeline sees it."""

    work: Callable[[Context, StageRecord], Mapping[str, Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...]
    options: Callable[[Context], Any]
    """What of the recipe decides the stage's outputs."""
    teacher: bool = False
    """Whether the stage asks the teacher."""
    prompts: str | None = None
    """A shipped file or folder that the stage reads."""


def serves_here(loaded: Recipe) -> bool:
    """Whether the teacher is a model that this process starts, which needs torch."""
    return loaded.teacher is not None and loaded.teacher.serve == "transformers"


def teacher_of(loaded: Recipe, folder: Path) -> Any | None:
    """The teacher's provider; nothing is started or asked yet. Raises `RecipeError` for a missing key variable."""
    teacher = loaded.teacher
    if teacher is None:
        return None
    if teacher.serve is not None:
        from distill.providers.local import LocalTeacher

        return LocalTeacher(teacher.model, log=folder / "teacher.log", server=teacher.serve)
    from distill.providers.openai import OpenAIProvider

    return OpenAIProvider(
        teacher.base_url or "",
        teacher.model,
        revision=teacher.revision,
        api_key=_secret(teacher.api_key_env, "teacher.api_key_env"),
        headers={
            name: _secret(variable, f"teacher.headers_env.{name}") or ""
            for name, variable in teacher.headers_env.items()
        },
        timeout_seconds=teacher.timeout_seconds,
    )


def _secret(variable: str | None, key: str) -> str | None:
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise RecipeError(f"{key}: the variable {variable} is not set; type: export {variable}=…")
    return value


def teacher_facts(context: Context) -> dict[str, Any] | None:
    """What run.json says of the teacher."""
    teacher = context.recipe.teacher
    if teacher is None or context.teacher is None:
        return None
    endpoint = context.teacher.endpoint
    return {
        "model": teacher.model,
        "url": endpoint.url,
        "fingerprint": endpoint.fingerprint,
        "served_by": teacher.serve,
        "terms": teacher.terms,
        "sampling": teacher.sampling.model_dump(exclude_none=True),
    }


def _engine(
    context: Context,
    stage: str,
    progress: console.Progress,
    providers: Mapping[str, Provider],
    *,
    local: bool = False,
) -> Engine:
    """`local`: the models are in this process; they cost nothing and answer in batches."""
    collect = context.recipe.collect or recipe.Collect()
    return Engine(
        context.journal,
        providers,
        concurrency=max(collect.concurrency, IN_PROCESS_BATCH) if local else collect.concurrency,
        attempts=collect.attempts,
        retry_failed=context.retry_failed,
        progress=progress,
        stage=stage,
        budget=Budget({}) if local else _budget(context, stage),
    )


def _prices(context: Context) -> dict[str, Price]:
    price = context.recipe.teacher.price if context.recipe.teacher is not None else None
    return {"teacher": Price(input=price.input, output=price.output)} if price is not None else {}


def _budget(context: Context, stage: str) -> Budget:
    """The run's cap, or the stage's own where less of it is left; what the journal holds is spent of it."""
    loaded, prices = context.recipe, _prices(context)
    caps = [] if loaded.budget_usd is None else [(loaded.budget_usd, _spent(context, None))]
    if stage == "collect" and loaded.collect is not None and loaded.collect.budget_usd is not None:
        caps.append((loaded.collect.budget_usd, _spent(context, stage)))
    cap, already = min(caps, key=lambda item: item[0] - item[1], default=(None, 0.0))
    return Budget(prices, cap_usd=cap, spent_usd=already)


def _spent(context: Context, stage: str | None) -> float:
    """USD that the journal's answers cost, of one stage or of all."""
    return spent_usd(context.journal.costs(), _prices(context), stage)


@contextmanager
def _asking(context: Context, stage: str, record: StageRecord, total: int | None) -> Iterator[Engine]:
    """An engine for the teacher with a progress, whose tally ends up in the record however the stage ends."""
    assert context.teacher is not None
    with console.progress(stage, total) as bar:
        engine = _engine(context, stage, bar, {"teacher": context.teacher})
        try:
            yield engine
        finally:
            _account(context, stage, record, [engine])


def _account(context: Context, stage: str, record: StageRecord, engines: Sequence[Engine]) -> None:
    """Sum up what the engines of a stage asked."""
    tallies = [engine.tally for engine in engines]
    record.requests = {
        name: sum(getattr(tally, name) for tally in tallies) for name in ("asked", "replayed", "failed", "retried")
    }
    record.tokens = {
        "prompt": sum(tally.prompt_tokens for tally in tallies),
        "completion": sum(tally.completion_tokens for tally in tallies),
    }
    record.usd = _spent(context, stage) if _prices(context) else None


def _expand(context: Context, record: StageRecord) -> Mapping[str, Any]:
    from distill import expand
    from distill.strategies.self_instruct import load_seeds

    section = context.recipe.expand
    assert section is not None
    strategy = shelf.part(STRATEGIES, section.strategy, kind="strategy", allowed=context.allowed)
    growth = strategy(
        section.options, seeds=load_seeds(Path(section.seeds)), seed=context.recipe.seed, target=section.tasks
    )
    with _asking(context, "expand", record, section.tasks) as engine:
        return expand.expand(context.folder, growth=growth, target=section.tasks, engine=engine)


def _collect(context: Context, record: StageRecord) -> Mapping[str, Any]:
    from distill import collect

    section, teacher = context.recipe.collect, context.recipe.teacher
    assert section is not None
    assert teacher is not None
    part = shelf.part(STRATEGIES, section.strategy, kind="strategy", allowed=context.allowed)
    tasks = collect.load_tasks(Path(section.tasks) if section.tasks else context.folder / "tasks.jsonl")
    with _asking(context, "collect", record, len(tasks)) as engine:
        status, counts = collect.collect(
            context.folder,
            tasks=tasks,
            strategy=part(section.options, sampling=teacher.sampling.sampling()),
            strategy_name=section.strategy,
            seed=context.recipe.seed,
            engine=engine,
            max_failed=section.max_failed,
            teacher=teacher.model,
        )
    record.detail = ACCEPTABLE if status == "partial" else None
    return counts


def _curate(context: Context, record: StageRecord) -> Mapping[str, Any]:
    from distill import curate

    rules = context.recipe.curate or []
    filters = [
        (rule.filter, shelf.part(FILTERS, rule.filter, kind="filter", allowed=context.allowed)(rule.options))
        for rule in rules
    ]
    test = context.recipe.collect.test if context.recipe.collect is not None else 0
    return curate.curate(context.folder, filters=filters, test=test, seed=context.recipe.seed)


def _train(context: Context, record: StageRecord) -> Mapping[str, Any]:
    from distill import train

    student, section = context.recipe.student, context.recipe.train
    assert student is not None
    assert section is not None
    stop_teacher(context)
    return train.train(
        context.folder,
        model=student.model,
        layers=student.prune.layers if student.prune is not None else None,
        template=student.template,
        options=section.options,
        seed=context.recipe.seed,
    )


def _compare(context: Context, record: StageRecord) -> Mapping[str, Any]:
    from distill import compare

    section, teacher = context.recipe.compare, context.recipe.teacher
    assert section is not None
    assert teacher is not None
    metrics = [shelf.part(METRICS, name, kind="metric", allowed=context.allowed) for name in section.metrics]
    sampling = section.sampling if section.sampling is not None else teacher.sampling
    tallies: list[Engine] = []

    def engine(providers: Mapping[str, Provider], *, progress: console.Progress, local: bool) -> Engine:
        tallies.append(_engine(context, "compare", progress, providers, local=local))
        return tallies[-1]

    try:
        return compare.compare(
            context.folder,
            engine=engine,
            journal=context.journal,
            metrics=[metric(metric.Options()) for metric in metrics],
            sampling=sampling.sampling(),
            seed=context.recipe.seed,
            teacher=context.teacher,
            release_teacher=lambda: stop_teacher(context),
            teacher_weights=teacher.model if teacher.serve is not None else None,
        )
    finally:
        _account(context, "compare", record, tallies)


def _report(context: Context, record: StageRecord) -> Mapping[str, Any]:
    from distill import report

    return report.report(context.folder, title=context.recipe.name)


def stop_teacher(context: Context) -> None:
    """Stop a server of ours; it starts again at the next request."""
    stop = getattr(context.teacher, "stop", None)
    if stop is not None:
        stop()


# --- what decides whether a stage is current


def _identity(context: Context) -> Any:
    """The teacher as it enters a fingerprint: address or weights, and how it samples."""
    loaded = context.recipe
    if loaded.teacher is None or context.teacher is None:
        return None
    return [context.teacher.endpoint, loaded.teacher.sampling.model_dump()]


def _expand_options(context: Context) -> Any:
    section = context.recipe.expand
    assert section is not None
    options = [section.strategy, section.tasks, file_sha256(Path(section.seeds)), section.options.model_dump()]
    return [*options, _identity(context), context.recipe.seed]


def _collect_options(context: Context) -> Any:
    section = context.recipe.collect
    assert section is not None
    tasks = file_sha256(Path(section.tasks)) if section.tasks else None
    return [section.strategy, tasks, section.options.model_dump(), _identity(context), context.recipe.seed]


def _curate_options(context: Context) -> Any:
    loaded = context.recipe
    rules = [[rule.filter, rule.options.model_dump()] for rule in loaded.curate or []]
    return [rules, loaded.collect.test if loaded.collect is not None else 0, loaded.seed]


def _train_options(context: Context) -> Any:
    student, section = context.recipe.student, context.recipe.train
    assert student is not None
    assert section is not None
    return [
        student.model_dump(), embedded.fingerprint(student.model), section.options.model_dump(), context.recipe.seed
    ]  # fmt: skip


def _compare_options(context: Context) -> Any:
    section = context.recipe.compare
    assert section is not None
    return [section.model_dump(), _identity(context), context.recipe.seed]


def _report_options(context: Context) -> Any:
    """Everything that the other stages say of themselves: the report shows it."""
    return [[name, context.run.stage(name)] for name in STAGES if name != "report"]


def sources_of(context: Context, stage: Stage) -> list[str]:
    """The modules whose source decides the stage's outputs: its own, shared ones, the parts that the recipe names."""
    return [*SHARED_SOURCES, *stage.sources, *_part_sources(context, stage)]


def _part_sources(context: Context, stage: Stage) -> list[str]:
    loaded = context.recipe
    named: list[tuple[Mapping[str, str], str]] = []
    if stage.work is _expand and loaded.expand is not None:
        named = [(STRATEGIES, loaded.expand.strategy)]
    elif stage.work is _collect and loaded.collect is not None:
        named = [(STRATEGIES, loaded.collect.strategy)]
    elif stage.work is _curate:
        named = [(FILTERS, rule.filter) for rule in loaded.curate or []]
    elif stage.work is _compare and loaded.compare is not None:
        named = [(METRICS, metric) for metric in loaded.compare.metrics]
    return [names.get(name, name).partition(":")[0] for names, name in named]


PIPELINE: Mapping[str, Stage] = {
    "expand": Stage(
        _expand,
        inputs=(),
        outputs=("tasks.jsonl",),
        sources=("distill.expand", "distill.novelty", "distill.prompts", "distill.engine.drive"),
        options=_expand_options,
        teacher=True,
        prompts="prompts/strategies",
    ),
    "collect": Stage(
        _collect,
        inputs=("tasks.jsonl",),
        outputs=("sessions.jsonl", "failures.jsonl"),
        sources=("distill.collect", "distill.engine.drive"),
        options=_collect_options,
        teacher=True,
    ),
    "curate": Stage(
        _curate,
        inputs=("sessions.jsonl",),
        outputs=("kept.jsonl", "dropped.jsonl", "test.jsonl"),
        sources=("distill.curate", "distill.novelty"),
        options=_curate_options,
    ),
    "train": Stage(
        _train,
        inputs=("kept.jsonl",),
        outputs=("student",),
        sources=("distill.train", "distill.chat", "distill.student.trainer", "distill.student.models"),
        options=_train_options,
    ),
    "compare": Stage(
        _compare,
        inputs=("test.jsonl", "student"),
        outputs=("answers.jsonl", "scores.json"),
        sources=("distill.compare", "distill.chat", "distill.stats", *STUDENT_SOURCES),
        options=_compare_options,
        teacher=True,
    ),
    "report": Stage(
        _report,
        inputs=("scores.json", "answers.jsonl", "kept.jsonl", "dropped.jsonl", "test.jsonl", "tasks.jsonl"),
        outputs=("report.html",),
        sources=("distill.report",),
        options=_report_options,
        prompts="prompts/report",
    ),
}
