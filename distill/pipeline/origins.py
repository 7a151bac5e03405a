"""Which recipe a command reads: a file, or a run's own copy, whose original may have changed since."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from distill.core import console
from distill.core.hashing import file_sha256
from distill.errors import RecipeError
from distill.pipeline.parts import Overrides, Source, load_recipe, recipe_file
from distill.pipeline.staleness import few
from distill.pipeline.starter import flat
from distill.recipe import Recipe
from distill.run.decisive import differences
from distill.run.origin import Origin, recorded
from distill.run.reading import json_object

MOST_BYTES = 1_000_000
"""An original of more bytes is no recipe."""


def origin_of(source: Source, overrides: Overrides) -> Origin:
    """Where a recipe comes from; a pipe leaves no trace."""
    keys = tuple(_keys(overrides))
    path = recipe_file(Path(source)).resolve() if isinstance(source, (str, PathLike)) else None
    if path is None or not path.is_file():
        return Origin(overrides=keys)
    return Origin(str(path), file_sha256(path), keys)


def load_addressed(
    source: Source, run_dir: Path | None, overrides: Overrides, allowed: Collection[str]
) -> tuple[Recipe, Path]:
    """The recipe as by `load_recipe`, and its run folder: `run_dir`, else the given run, else `runs/NAME`.

    The folder may not exist yet. Of a run, one line says which recipe is read. Raises `RecipeError`.
    """
    recipe = load_recipe(source, overrides=overrides, allowed=allowed)
    say_which(source, recipe, overrides)
    folder = run_dir or Path("runs") / recipe.name
    if run_dir is None and isinstance(source, (str, PathLike)) and Path(source).is_dir():
        folder = Path(source)
    require_other_run(recipe, folder)
    return recipe, folder


def require_other_run(recipe: Recipe, folder: Path) -> None:
    """Raise `RecipeError` where the student that a run continues is its own, which training replaces."""
    if recipe.student is not None and recipe.student.continues == str(folder.resolve()):
        raise RecipeError(
            f"student.model: {folder} is this run's own folder, and a run continues the student of another; give the "
            "recipe another `name`, or --run-dir"
        )


def say_which(source: Source, recipe: Recipe, overrides: Overrides = ()) -> None:
    """Of a run that is given in place of a recipe: one line on the recipe that is read."""
    if isinstance(source, (str, PathLike)) and Path(source).is_dir():
        console.say(f"reads {Path(source) / 'recipe.yaml'}{_on_original(Path(source), recipe, [*_keys(overrides)])}")


def _keys(overrides: Overrides) -> Iterable[str]:
    return overrides if isinstance(overrides, Mapping) else (each.partition("=")[0] for each in overrides)


def _on_original(run: Path, recipe: Recipe, overrides: list[str]) -> str:
    origin = recorded(run, json_object(run / "run.json"))
    if not origin.recipe:
        return ""
    path = Path(origin.recipe)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    if not os.path.isfile(path):  # False also where this user may not look
        return f"; {shown}, which it came from, is gone"
    try:
        if not 0 < path.stat().st_size < MOST_BYTES or file_sha256(path) == origin.sha256:
            return f", which came from {shown}"
        now = load_recipe(path, importing=False)
    except (OSError, RecipeError):
        return f"; {shown}, which it came from, has changed since, and cannot be read as a recipe now"
    was, new = (_contents(one, ("files", *origin.overrides, *overrides)) for one in (recipe, now))
    if not (changes := _changes(was, new)):
        return f", which came from {shown}"
    return f"; {shown}, which it came from, has changed since: {few(changes)}; to use that, type it in place of {run}"


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sections that only one has, then values that differ."""
    before, after = ({key.partition(".")[0] for key in each} for each in (was, now))
    sections = {f"{name} added" for name in after - before} | {f"{name} left out" for name in before - after}
    common = ({k: v for k, v in each.items() if k.partition(".")[0] in before & after} for each in (was, now))
    return [*sorted(sections), *differences(*common)]


def _contents(recipe: Recipe, without: Collection[str]) -> dict[str, Any]:
    """The recipe's values by dotted key, those `without` left out, with a file's SHA-256 in place of its path."""
    values = {key: value for key, value in flat(recipe.document()).items() if not _is_of(key, without)}
    return {key: recipe.files.get(value, value) if isinstance(value, str) else value for key, value in values.items()}


def _is_of(key: str, sections: Iterable[str]) -> bool:
    """Whether a dotted key is one of the given, within one, or has one within."""
    return any(f"{key}.".startswith(f"{one}.") or f"{one}.".startswith(f"{key}.") for one in sections)
