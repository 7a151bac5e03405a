"""Decides whether a stage is current."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from distill.collect.stage import collecting
from distill.collect.strategies import STRATEGIES as ANSWERING
from distill.compare.metrics import METRICS
from distill.compare.stage import comparing
from distill.core.files import file_sha256
from distill.core.hashing import json_sha256
from distill.curate.filters import FILTERS
from distill.curate.stage import curating
from distill.expand.stage import expanding
from distill.expand.strategies import STRATEGIES as GROWING
from distill.formats.importers import IMPORTERS
from distill.pipeline.stages import Stage
from distill.run.context import Context


@cache
def source_sha256(module: str) -> str:
    """The SHA-256 of a module's source, found without running it; of its name where there is no source."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return hashlib.sha256(module.encode()).hexdigest()
    return file_sha256(Path(spec.origin))


def sources_sha256(modules: Iterable[str]) -> str:
    """One SHA-256 over the sources of several modules."""
    return json_sha256({module: source_sha256(module) for module in modules})


SHARED_SOURCES = ("distill.types", "distill.core.jsonl", "distill.text.tokens")
IMPORT_SOURCES = (
    "distill.formats.importers",
    "distill.formats.sources",
    "distill.formats.json_rows",
    "distill.formats.schemas",
    "distill.formats.oasst_trees",
    "distill.formats.chat_html",
)


def sources_of(context: Context, stage: Stage) -> list[str]:
    """The modules whose source decides the stage's outputs: its own, shared ones, the parts that the recipe names."""
    return [*SHARED_SOURCES, *stage.sources, *_part_sources(context, stage)]


def _part_sources(context: Context, stage: Stage) -> list[str]:
    loaded = context.recipe
    named: list[tuple[Mapping[str, str], str]] = []
    if stage.work is expanding and loaded.expand is not None:
        named = [(GROWING, loaded.expand.strategy)]
    elif stage.work is collecting and loaded.collect is not None:
        named = [(ANSWERING, loaded.collect.strategy)]
    if stage.work is collecting:
        named += [(IMPORTERS, source.importer) for source in loaded.sources]
    elif stage.work is curating:
        named = [(FILTERS, rule.filter) for rule in loaded.curate or []]
    elif stage.work is comparing and loaded.compare is not None:
        named = [(METRICS, one.metric) for one in loaded.compare.metrics]
    reads = bool(loaded.sources or (loaded.collect is not None and loaded.collect.tasks))
    read = IMPORT_SOURCES if stage.work is collecting and reads else ()
    return [*read, *(names.get(name, name).partition(":")[0] for names, name in named)]
