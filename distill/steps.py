"""What each stage is to the pipeline: the call that does it, the files it reads and writes, and what makes it stale."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import console, embedded, recipe, shelf
from distill.engine import Outcome
from distill.engine.budget import Budget, Price, cost_usd, spent_usd
from distill.engine.drive import Engine
from distill.engine.passes import Passes
from distill.errors import RecipeError
from distill.filters import FILTERS
from distill.fingerprints import file_sha256
from distill.importers import IMPORTERS
from distill.journal import Journal
from distill.metrics import METRICS
from distill.providers import Provider
from distill.recipe import Recipe
from distill.run import StageRecord, read_record
from distill.strategies import STRATEGIES
from distill.teachers import OTHER_ROLES, Teachers
from distill.types import Flow, Growth, Sampling, Session, Task

if TYPE_CHECKING:
    from distill.collect import Chosen
    from distill.ingest import Source

SHARED_SOURCES = ("distill.types", "distill.rows", "distill.text")
DRIVEN_SOURCES = ("distill.engine.drive", "distill.engine.flows")
STUDENT_SOURCES = tuple(
    f"distill.student.{name}" for name in ("batches", "generate", "inprocess", "likelihood", "models")
)
TRAIN_SOURCES = tuple(
    f"distill.student.{name}" for name in ("build", "checkpoints", "examples", "layout", "log", "models", "trainer")
)
TURN_SOURCES = tuple(f"distill.strategies.{name}" for name in ("dialogue", "finals", "thoughts", "turns"))
"""What strategies share."""
FILTER_SOURCES = ("distill.filters", "distill.filters.likelihoods", "distill.chat", "distill.student.likelihood")
"""What filters share."""
IMPORT_SOURCES = tuple(f"distill.{name}" for name in ("importers", "ingest", "records", "shapes", "trees", "webtext"))
COMPARING_SOURCES = tuple(f"distill.comparing.{name}" for name in ("asking", "entries", "found", "headline"))
IN_PROCESS_BATCH = 32
BASE = "base"
"""The role of the student's model before training."""
ACCEPTABLE = "failures within collect.max_failed"


@dataclass(slots=True)
class Context:
    """What the stages of one invocation share."""

    folder: Path
    recipe: Recipe
    journal: Journal
    teachers: Teachers | None
    """A local one starts its server at the first request."""
    allowed: Collection[str] = ()
    retry_failed: bool = False
    accept_partial: bool = False
    wait: bool = True
    """Whether to wait for a provider's batches."""


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
    """Whether a teacher is a model that this process starts, which needs torch."""
    return any(one.serve == "transformers" for one in (*loaded.teachers, *loaded.roles.values()))


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
        hedge=None if local else collect.hedge,
        rates=context.teachers.rates() if context.teachers is not None else None,
        retry_failed=context.retry_failed,
        progress=progress,
        stage=stage,
        budget=Budget({}) if local else _budget(context, stage),
    )


def _prices(context: Context) -> dict[str, Price]:
    return context.teachers.prices() if context.teachers is not None else {}


def _budget(context: Context, stage: str) -> Budget:
    """The run's cap, or the stage's own where less of it is left; what the journal holds is spent of it."""
    loaded, prices = context.recipe, _prices(context)
    caps = [] if loaded.budget_usd is None else [(loaded.budget_usd, _spent(context, None))]
    if stage == "collect" and loaded.collect is not None and loaded.collect.budget_usd is not None:
        caps.append((loaded.collect.budget_usd, _spent(context, stage)))
    cap, already = min(caps, key=lambda item: item[0] - item[1], default=(None, 0.0))
    return Budget(prices, cap_usd=cap, spent_usd=already)


def _spent(context: Context, stage: str | None) -> float:
    """USD that all sends cost so far, of one stage or of all."""
    return spent_usd(context.journal.costs(), _prices(context), stage)


def passes(context: Context, stage: str, progress: console.Progress) -> Passes:
    """What collects through a provider's batches."""
    from distill.providers.batch import BatchJobs

    assert context.teachers is not None
    jobs = {name: BatchJobs(provider) for name, provider in _asked(context, stage).items()}
    return Passes(
        context.journal,
        jobs,
        stage=stage,
        budget=_budget(context, stage),
        wait=context.wait,
        progress=progress,
        retry_failed=context.retry_failed,
    )


def _asked(context: Context, stage: str) -> dict[str, Any]:
    """Whom a stage asks through the recipe's teachers; a strategy that does not say asks every role."""
    assert context.teachers is not None
    section = context.recipe.collect if stage == "collect" else None
    every = recipe.Asks(roles=OTHER_ROLES)
    return context.teachers.asked(getattr(section.options, "asks", every).roles if section is not None else ())


def _require_no_open_batch(context: Context, stage: str, is_batch: bool) -> None:
    """What is open at a provider would be bought a second time by asking live."""
    still = [batch.name for batch in context.journal.batches(stage) if batch.state != "ingested"]
    if still and not is_batch:
        raise RecipeError(
            f"{stage}: {len(still)} batches are open at the provider, whose questions would be asked twice; set"
            f" collect.mode to batch until they are in, or type: distill collect {context.folder} --set"
            " collect.mode=batch --cancel-batches"
        )


@contextmanager
def _asking(context: Context, stage: str, record: StageRecord, total: int | None) -> Iterator[Any]:
    """An engine for the teachers with a progress, whose tally ends up in the record however the stage ends."""
    assert context.teachers is not None
    collect = context.recipe.collect
    is_batch = stage == "collect" and collect is not None and collect.mode == "batch"
    _require_no_open_batch(context, stage, is_batch)
    with console.progress(stage, total) as bar:
        engine = passes(context, stage, bar) if is_batch else _engine(context, stage, bar, _asked(context, stage))
        try:
            yield engine
        finally:
            _account(context, stage, record, [engine])


def _account(context: Context, stage: str, record: StageRecord, engines: Sequence[Engine | Passes]) -> None:
    """Sum up what the engines of a stage asked."""
    tallies = [engine.tally for engine in engines]
    record.requests = {
        name: sum(getattr(tally, name) for tally in tallies) for name in ("asked", "replayed", "failed", "retried")
    }
    record.tokens = {
        "prompt": sum(tally.prompt_tokens for tally in tallies),
        "completion": sum(tally.completion_tokens for tally in tallies),
    }
    prices = _prices(context)
    costs = [cost for cost in context.journal.costs() if cost.stage == stage]
    record.usd = spent_usd(costs, prices) if prices else None
    record.costs = [
        {
            "teacher": cost.role,
            "model": cost.model,
            "outcome": cost.outcome,
            "sends": cost.sends,
            "prompt_tokens": cost.prompt_tokens,
            "completion_tokens": cost.completion_tokens,
            "usd": round(cost_usd(cost, prices), 8) if prices else None,
        }
        for cost in costs
    ]


def growth_of(context: Context) -> Growth:
    """The expansion that the recipe describes, at its beginning."""
    from distill.strategies.pool import load_seeds

    section = context.recipe.expand
    assert section is not None
    strategy = shelf.part(STRATEGIES, section.strategy, kind="strategy", allowed=context.allowed)
    growth: Growth = strategy(
        section.options, seeds=load_seeds(Path(section.seeds)), seed=context.recipe.seed, target=section.tasks
    )
    return growth


def _expand(context: Context, record: StageRecord) -> Mapping[str, Any]:
    from distill import expand

    section = context.recipe.expand
    assert section is not None
    growth = growth_of(context)
    with _asking(context, "expand", record, section.tasks) as engine:
        return expand.expand(context.folder, growth=growth, target=section.tasks, engine=engine)


def tasks_of(context: Context) -> list[Task]:
    """The tasks that collect has answered."""
    from distill.collect import load_tasks

    section = context.recipe.collect
    assert section is not None
    return load_tasks(Path(section.tasks) if section.tasks else context.folder / "tasks.jsonl")


def choice_of(context: Context) -> Callable[[Task], Chosen]:
    """Which teacher answers a task, and by which strategy."""
    from distill.collect import Chosen

    section, teachers = context.recipe.collect, context.teachers
    assert section is not None
    assert teachers is not None
    part = shelf.part(STRATEGIES, section.strategy, kind="strategy", allowed=context.allowed)
    options = _with_samplings(section.options, context.recipe)
    chosen = {
        one.name: Chosen(one.name, one.section.called, part(options, sampling=one.section.sampling.sampling()))
        for one in teachers
    }
    return lambda task: chosen[teachers.pick(task).name]


def _with_samplings(options: recipe.Options, loaded: Recipe) -> recipe.Options:
    """The options with `user_sampling` and `judge_sampling`, left out there, from those sections of the recipe."""
    given = {
        f"{role}_sampling": one.sampling
        for role, one in loaded.roles.items()
        if one.sampling != recipe.SamplingOptions() and getattr(options, f"{role}_sampling", one) is None
    }
    return options.model_copy(update=given)


def _collect(context: Context, record: StageRecord) -> Mapping[str, Any]:
    from distill import collect

    imported, came = _ingest(context)
    section = context.recipe.collect
    if section is None:
        return came
    tasks = tasks_of(context)
    _require_apart(imported, tasks)
    with _asking(context, "collect", record, len(tasks)) as engine:
        status, counts = collect.collect(
            context.folder,
            tasks=tasks,
            choose=choice_of(context),
            strategy_name=section.strategy,
            seed=context.recipe.seed,
            engine=engine,
            max_failed=section.max_failed,
            before=imported,
        )
    record.detail = ACCEPTABLE if status == "partial" else None
    return {**came, **counts, "sessions": len(imported) + counts["sessions"]}


def _ingest(context: Context) -> tuple[list[Session], Mapping[str, Any]]:
    """The sessions of the recipe's sources, and counts; where nothing is collected, they are sessions.jsonl."""
    loaded = context.recipe
    if not loaded.sources:
        return [], {}
    from distill import ingest

    sources = [_source_of(source, loaded) for source in loaded.sources]
    found, counts = ingest.ingest(context.folder, sources=sources, seed=loaded.seed, allowed=context.allowed)
    if loaded.collect is None:
        ingest.write(context.folder, found)
    return found, {**counts, "sessions": len(found)}


def _source_of(section: recipe.Source, loaded: Recipe) -> Source:
    from distill import ingest
    from distill.importers import Address

    splitter = None
    if section.max_tokens is not None:
        named = section.tokenizer or (loaded.student.model if loaded.student is not None else "")
        splitter = ingest.splitter(named, section.max_tokens)
    return ingest.Source(
        format=section.importer,
        address=Address(section.path or section.hub or "", section.split, section.revision),
        licence=section.licence,
        name=section.called,
        take=section.take,
        weight=section.weight,
        splitter=splitter,
    )


def _require_apart(imported: Sequence[Session], tasks: Sequence[Task]) -> None:
    names = {session.id for session in imported}
    if both := next((task.id for task in tasks if task.id in names), None):
        raise RecipeError(f"sources: the id {both} is also that of a task; give the source another `name`")


def _curate(context: Context, record: StageRecord) -> Mapping[str, Any]:
    from distill import curate

    section = context.recipe.collect or recipe.Collect(test=0)
    engines: list[Engine] = []
    try:
        counts = curate.curate(
            context.folder,
            filters=[(rule.filter, _filter_of(context, rule)) for rule in context.recipe.curate or []],
            test=context.recipe.held_out,
            seed=context.recipe.seed,
            ask=partial(_ask_of_rows, context, engines),
            max_failed=section.max_failed,
            tell=record.counts.update,
        )
    finally:
        if engines:
            _account(context, "curate", record, engines)
    record.detail = ACCEPTABLE if counts.get("retryable") else None
    return counts


def _filter_of(context: Context, rule: recipe.Rule) -> Any:
    part = shelf.part(FILTERS, rule.filter, kind="filter", allowed=context.allowed)
    if getattr(part, "role", None) == "judge":
        return part(rule.options, sampling=_judge_sampling(context.recipe))
    return part(rule.options)


def _judge_sampling(loaded: Recipe) -> Sampling:
    """The judge's own; of a teacher who judges, only what makes its endpoint work."""
    if (judge := loaded.roles.get("judge")) is not None:
        return judge.sampling.sampling()
    teacher = loaded.main_teacher
    own = teacher.sampling.sampling() if teacher is not None else Sampling()
    return Sampling(extra_body=own.extra_body, reasoning_effort=own.reasoning_effort)


def roles_of_filters(loaded: Recipe, allowed: Collection[str] = ()) -> set[str]:
    """Whom the curation rules ask: `judge`, `base`."""
    parts = [shelf.part(FILTERS, rule.filter, kind="filter", allowed=allowed) for rule in loaded.curate or ()]
    return {part.role for part in parts if hasattr(part, "role")}


def _ask_of_rows(
    context: Context,
    engines: list[Engine],
    flows: Sequence[tuple[str, Callable[[], Flow[Any]]]],
    *,
    rule: str,
    role: str,
) -> Sequence[Outcome[Any]]:
    """Drive one rule's flows: the student's model in this process, anybody else as in collect."""
    with console.progress(f"curate: {rule}", len(flows)) as bar, _asked_by_rule(context, rule, role) as provider:
        engines.append(_engine(context, "curate", bar, {role: provider}, local=role == BASE))
        return engines[-1].run(flows)


@contextmanager
def _asked_by_rule(context: Context, rule: str, role: str) -> Iterator[Any]:
    """Who answers a rule; weights in this process are let go at the end. Raises `RecipeError` where there is nobody."""
    if role != BASE:
        if context.teachers is None:
            raise RecipeError(f"curate: the filter {rule} asks a {role}, and the recipe has no `teacher` to play it")
        yield context.teachers.providers[role]
        return
    from distill.student.inprocess import local_model

    student = context.recipe.student
    if student is None:
        raise RecipeError(f"curate: the filter {rule} asks the student's model, and the recipe has no `student`")
    stop_teacher(context)
    provider = local_model(student.model, name=BASE, template=student.template)
    try:
        yield provider
    finally:
        provider.release()


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

    section, teachers = context.recipe.compare, context.teachers
    assert section is not None
    assert teachers is not None
    teacher = teachers.main.section
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
            teachers={one.name: one.provider for one in teachers},
            release_teacher=lambda: stop_teacher(context),
            teacher_weights=teacher.model if teacher.serve is not None and len(teachers.hired) == 1 else None,
        )
    finally:
        _account(context, "compare", record, tallies)


def _report(context: Context, record: StageRecord) -> Mapping[str, Any]:
    from distill import report

    return report.report(context.folder, title=context.recipe.name)


def stop_teacher(context: Context) -> None:
    """Stop servers of ours; they start again at the next request."""
    if context.teachers is not None:
        context.teachers.stop()


# --- what decides whether a stage is current


def _identity(context: Context) -> Any:
    """The teachers as they enter a fingerprint."""
    return context.teachers.identity() if context.teachers is not None else None


def _expand_options(context: Context) -> Any:
    section = context.recipe.expand
    assert section is not None
    options = [section.strategy, section.tasks, file_sha256(Path(section.seeds)), section.options.model_dump()]
    files = [context.recipe.files.get(path) for path in section.options.paths()]
    others = context.teachers.other_identity() if context.teachers is not None else []
    return [*options, files, _identity(context), context.recipe.seed, *others]


def _collect_options(context: Context) -> Any:
    section = context.recipe.collect
    sources = _source_options(context.recipe)
    if section is None:
        return [sources, context.recipe.seed]
    tasks = file_sha256(Path(section.tasks)) if section.tasks else None
    others = context.teachers.other_identity() if context.teachers is not None else []
    options = [section.strategy, tasks, section.options.model_dump(), _identity(context), context.recipe.seed, *others]
    return [*options, sources] if sources else options


def _source_options(loaded: Recipe) -> list[Any]:
    """The sources with what is in their files, and in their tokenizer's model."""
    model = loaded.student.model if loaded.student is not None else None
    return [
        [
            source.model_dump(),
            loaded.files.get(source.path or ""),
            _tokenizer_sha256(source.tokenizer or model or "") if source.max_tokens is not None else None,
        ]
        for source in loaded.sources
    ]


def _tokenizer_sha256(model: str) -> str:
    path = Path(model) / "tokenizer.json"
    return file_sha256(path) if path.is_file() else embedded.fingerprint(model)


def _curate_options(context: Context) -> Any:
    loaded = context.recipe
    rules = [
        [rule.filter, rule.options.model_dump(), [loaded.files.get(path) for path in rule.options.paths()]]
        for rule in loaded.curate or []
    ]
    options: list[Any] = [rules, loaded.held_out, loaded.seed]
    roles = roles_of_filters(loaded, context.allowed)
    if "judge" in roles and context.teachers is not None:
        options.append([context.teachers.providers["judge"].endpoint, _judge_sampling(loaded)])
    if BASE in roles and loaded.student is not None:
        options.append([embedded.fingerprint(loaded.student.model), loaded.student.template])
    return options


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
    return [[name, stage] for name, stage in read_record(context.folder).get("stages", {}).items() if name != "report"]


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
    if stage.work is _collect:
        named += [(IMPORTERS, source.importer) for source in loaded.sources]
    elif stage.work is _curate:
        named = [(FILTERS, rule.filter) for rule in loaded.curate or []]
    elif stage.work is _compare and loaded.compare is not None:
        named = [(METRICS, metric) for metric in loaded.compare.metrics]
    reads = bool(loaded.sources or (loaded.collect is not None and loaded.collect.tasks))
    read = IMPORT_SOURCES if stage.work is _collect and reads else ()
    return [*read, *(names.get(name, name).partition(":")[0] for names, name in named)]


PIPELINE: Mapping[str, Stage] = {
    "expand": Stage(
        _expand,
        inputs=(),
        outputs=("tasks.jsonl",),
        sources=(
            "distill.expand",
            "distill.novelty",
            "distill.prompts",
            "distill.strategies.pool",
            "distill.engine.drive",
            "distill.engine.flows",
        ),
        options=_expand_options,
        teacher=True,
        prompts="prompts/strategies",
    ),
    "collect": Stage(
        _collect,
        inputs=("tasks.jsonl",),
        outputs=("sessions.jsonl", "failures.jsonl", "rejected.jsonl"),
        sources=("distill.collect", "distill.engine.flows", "distill.prompts", "distill.teachers", *TURN_SOURCES),
        options=_collect_options,
        teacher=True,
        prompts="prompts/strategies",
    ),
    "curate": Stage(
        _curate,
        inputs=("sessions.jsonl",),
        outputs=("kept.jsonl", "dropped.jsonl", "test.jsonl"),
        sources=("distill.curate", "distill.funnel", "distill.novelty", *FILTER_SOURCES),
        options=_curate_options,
        teacher=True,
        prompts="prompts/judges",
    ),
    "train": Stage(
        _train,
        inputs=("kept.jsonl",),
        outputs=("student",),
        sources=("distill.train", "distill.chat", *TRAIN_SOURCES),
        options=_train_options,
    ),
    "compare": Stage(
        _compare,
        inputs=("test.jsonl", "student"),
        outputs=("answers.jsonl", "scores.json"),
        sources=("distill.compare", "distill.chat", "distill.stats", *COMPARING_SOURCES, *STUDENT_SOURCES),
        options=_compare_options,
        teacher=True,
    ),
    "report": Stage(
        _report,
        inputs=("scores.json", "answers.jsonl", "kept.jsonl", "dropped.jsonl", "test.jsonl", "tasks.jsonl"),
        outputs=("report.html",),
        sources=("distill.report", "distill.funnel"),
        options=_report_options,
        prompts="prompts/report",
    ),
}
