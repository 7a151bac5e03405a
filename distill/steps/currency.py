"""What decides whether a stage is current: its options, and the modules whose source it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill import assets, embedded
from distill.filters import FILTERS
from distill.fingerprints import file_sha256, tree_sha256
from distill.importers import IMPORTERS
from distill.metrics import METRICS
from distill.metrics.instructions import SHIPPED, Instructions
from distill.recipe import Compare, Recipe
from distill.run import read_record
from distill.steps import rules, sessions, student
from distill.steps.context import BASE, Context, Stage
from distill.steps.rules import judge_sampling, roles_of_filters
from distill.strategies import STRATEGIES

SHARED_SOURCES = ("distill.types", "distill.rows", "distill.text")
IMPORT_SOURCES = tuple(f"distill.{name}" for name in ("importers", "ingest", "records", "shapes", "trees", "webtext"))


def _identity(context: Context) -> Any:
    """The teachers as they enter a fingerprint."""
    return context.teachers.identity() if context.teachers is not None else None


def expand_options(context: Context) -> Any:
    """Of the stage expand."""
    section = context.recipe.expand
    assert section is not None
    options = [section.strategy, section.tasks, file_sha256(Path(section.seeds)), section.options.model_dump()]
    files = [context.recipe.files.get(path) for path in section.options.paths()]
    others = context.teachers.other_identity() if context.teachers is not None else []
    return [*options, files, _identity(context), context.recipe.seed, *others]


def collect_options(context: Context) -> Any:
    """Of the stage collect, sources included."""
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


def curate_options(context: Context) -> Any:
    """Of the stage curate, with whom its rules ask."""
    loaded = context.recipe
    rules = [
        [rule.filter, rule.options.model_dump(), [loaded.files.get(path) for path in rule.options.paths()]]
        for rule in loaded.curate or []
    ]
    options: list[Any] = [rules, loaded.held_out, loaded.seed]
    roles = roles_of_filters(loaded, context.allowed)
    if "judge" in roles and context.teachers is not None:
        options.append([context.teachers.providers["judge"].endpoint, judge_sampling(loaded)])
    if BASE in roles and loaded.student is not None:
        options.append([embedded.fingerprint(loaded.student.model), loaded.student.template])
    return options


def train_options(context: Context) -> Any:
    """Of the stage train."""
    student, section = context.recipe.student, context.recipe.train
    assert student is not None
    assert section is not None
    return [
        student.model_dump(), embedded.fingerprint(student.model), section.options.deciding(), context.recipe.seed
    ]  # fmt: skip


def compare_options(context: Context) -> Any:
    """Of the stage compare."""
    section = context.recipe.compare
    assert section is not None
    metrics = [[one.metric, one.options.model_dump()] for one in section.metrics]
    parts = [path for one in section.metrics for path in one.options.paths()]
    named = [section.prompts, *section.answers.values(), *parts]
    files = [context.recipe.files.get(path) for path in named if path is not None]
    others = context.teachers.other_identity() if context.teachers is not None else []
    told = section.model_dump(exclude={"metrics"})
    judge = judge_sampling(context.recipe) if section.judge is not None else None
    return [told, metrics, files, _identity(context), context.recipe.seed, *others, judge, _shipped(section)]


def _shipped(section: Compare) -> list[str]:
    """What comes with the toolkit and is asked: the judge's words, and the instructions where no file is named."""
    names = ["judges"] if section.judge is not None else []
    names += [
        SHIPPED for one in section.metrics if isinstance(one.options, Instructions.Options) and not one.options.prompts
    ]
    return [tree_sha256(assets.find(f"prompts/{name}")) for name in names]


def report_options(context: Context) -> Any:
    """Everything that the other stages say of themselves: the report shows it."""
    return [[name, stage] for name, stage in read_record(context.folder).get("stages", {}).items() if name != "report"]


def sources_of(context: Context, stage: Stage) -> list[str]:
    """The modules whose source decides the stage's outputs: its own, shared ones, the parts that the recipe names."""
    return [*SHARED_SOURCES, *stage.sources, *_part_sources(context, stage)]


def _part_sources(context: Context, stage: Stage) -> list[str]:
    loaded = context.recipe
    named: list[tuple[Mapping[str, str], str]] = []
    if stage.work is sessions.expanding and loaded.expand is not None:
        named = [(STRATEGIES, loaded.expand.strategy)]
    elif stage.work is sessions.collecting and loaded.collect is not None:
        named = [(STRATEGIES, loaded.collect.strategy)]
    if stage.work is sessions.collecting:
        named += [(IMPORTERS, source.importer) for source in loaded.sources]
    elif stage.work is rules.curating:
        named = [(FILTERS, rule.filter) for rule in loaded.curate or []]
    elif stage.work is student.comparing and loaded.compare is not None:
        named = [(METRICS, one.metric) for one in loaded.compare.metrics]
    reads = bool(loaded.sources or (loaded.collect is not None and loaded.collect.tasks))
    read = IMPORT_SOURCES if stage.work is sessions.collecting and reads else ()
    return [*read, *(names.get(name, name).partition(":")[0] for names, name in named)]
