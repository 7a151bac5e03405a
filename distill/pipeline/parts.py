"""Loads recipes by path or name, and validates the options of their parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ConfigDict

from distill.collect.strategies import STRATEGIES as ANSWERING
from distill.compare.metrics import METRICS
from distill.core import assets, console, registry
from distill.curate.filters import FILTERS
from distill.errors import RecipeError
from distill.expand.strategies import STRATEGIES as GROWING
from distill.formats import importers
from distill.formats.importers import IMPORTERS
from distill.formats.named_columns import named_columns
from distill.pipeline.requirements import require_roles
from distill.recipe import BaseOptions, Parts, Recipe, load, load_recorded
from distill.recipe import Source as Data
from distill.run.layout import run_named
from distill.train.objectives import OBJECTIVES
from distill.train.options import TrainOptions


class _Unchecked(BaseOptions):
    """Options of a user-defined part that is not imported."""

    model_config = ConfigDict(extra="allow", frozen=True)


def parts(*, allowed: Collection[str] = (), importing: bool = True) -> Parts:
    """The shelves' option models; with `importing=False`, user-defined parts are accepted without importing them."""

    def lookup(names: Mapping[str, str], kind: str, needs: str) -> Callable[[str], type[BaseOptions]]:
        def options_of(name: str) -> type[BaseOptions]:
            if ":" in name and not importing:
                return _Unchecked
            part = registry.part(names, name, kind=kind, allowed=allowed)
            if not hasattr(part, needs):
                suggestion = registry.suggest(name, names)
                raise RecipeError(f'{kind} "{name}" has no `{needs}`, so it does not fit here{suggestion}')
            options: type[BaseOptions] = part.Options
            return options

        return options_of

    def importer(name: str) -> Any:
        return None if ":" in name and not importing else registry.part(IMPORTERS, name, kind="format", allowed=allowed)

    return Parts(
        expand=lookup(GROWING, "strategy", "propose"),
        collect=lookup(ANSWERING, "strategy", "flow"),
        filter=lookup(FILTERS, "filter", "scope"),
        metric=lookup(METRICS, "metric", "score"),
        train=TrainOptions,
        objective=lookup(OBJECTIVES, "objective", "loss"),
        source=importer,
    )


Source: TypeAlias = str | PathLike[str] | Mapping[str, Any] | Recipe
"""A recipe's file, a run folder, the bare name of a shipped recipe, the contents of a recipe's file, or a recipe."""
Overrides: TypeAlias = Iterable[str] | Mapping[str, Any]
"""Changes to a recipe: `["train.epochs=3"]`, or `{"train.epochs": 3}`."""


def load_recipe(
    source: Source, *, overrides: Overrides = (), allowed: Collection[str] = (), importing: bool = True
) -> Recipe:
    """A validated recipe, from a file, a run folder, the bare name of a shipped one, or its values.

    `allowed` are packages whose code it may name; with `importing=False` that code is accepted without importing it.
    Keys of a run's own copy that are unknown now are left out with a line each. Raises `RecipeError` with a line for
    each fault.
    """
    content: Path | Mapping[str, Any]
    is_run = isinstance(source, (str, PathLike)) and os.path.isdir(source)
    if isinstance(source, Recipe):
        content = source.document()
    else:
        content = source if isinstance(source, Mapping) else recipe_file(Path(source))
    recipe = load(
        content,
        parts(allowed=allowed, importing=importing),
        overrides=overrides,
        report_dropped=console.warn if is_run else None,
    )
    file = "recipe" if isinstance(content, Mapping) else content
    recipe = recipe.model_copy(update={"sources": [_with_format(source, file) for source in recipe.sources]})
    require_roles(file, recipe)
    return recipe


def _with_format(source: Data, file: str | Path) -> Data:
    """The source with the format of its file, guessed where the recipe has none, and with its columns looked up."""
    try:
        columns = named_columns(source.prompt, source.answer, source.system, source.reference)
        if source.path is None or (source.format is not None and columns is None):
            return source
        guessed, _ = importers.guess(source.path, columns)
    except RecipeError as error:
        raise RecipeError(f"{file}: sources.{source.display_name}: {error}") from error
    return source.model_copy(update={"format": source.format or guessed})


def folder_of(source: Source) -> Path:
    """The folder of a recipe's file, or a run; the current folder for a recipe that is no file."""
    path = Path(source) if isinstance(source, (str, PathLike)) else Path()
    return path if os.path.isdir(path) else path.parent


def shipped() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(file.stem for file in assets.find("recipes").glob("*.yaml"))


def recipe_of_record(document: Mapping[str, Any], *, allowed: Collection[str] = ()) -> Recipe:
    """A recipe as recorded in a run; the files that it names are not read. Raises `RecipeError`."""
    return load_recorded(document, parts(allowed=allowed))


DATA = (".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of files that are no recipes."""


def recipe_file(path: Path) -> Path:
    """The file of a recipe that is given as a file, a run folder or the bare name of a shipped one."""
    if os.path.isdir(path):
        inside = path / "recipe.yaml"
        if not inside.is_file():
            raise RecipeError(f"{path} is no run folder: it has no recipe.yaml; give a recipe or a run folder")
        return inside
    if not os.path.exists(path) and path.suffix == "" and len(path.parts) == 1:
        if path.name not in shipped():
            near = file if (file := Path(f"{path.name}.yaml")).is_file() else run_named(path.name)
            hint = f'; did you mean "{near}"?' if near is not None else registry.suggest(path.name, shipped())
            raise RecipeError(f'no file and no shipped recipe "{path}"{hint}')
        return assets.find(f"recipes/{path.name}.yaml")
    if path.suffix in DATA:
        raise RecipeError(f"{path} is data, no recipe; name it in one under `sources`, or type: distill import {path}")
    return path
