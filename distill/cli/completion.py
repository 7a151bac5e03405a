"""Candidates for shell completion: recipes, runs, stages and keys of a recipe.

Each press of TAB starts a process, so nothing heavy is imported, and no candidate has a line of help, which typer would
render by importing rich (0.2 s). Where there is no candidate, the shell completes paths.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.pipeline.recipe_keys import Key

STAGES = ("expand", "collect", "curate", "train", "compare", "report")


def shipped(incomplete: str) -> list[str]:
    """The shipped recipes."""
    from distill.core import assets

    return _beginning(incomplete, sorted(file.stem for file in assets.find("recipes").glob("*.yaml")))


def recipes(incomplete: str) -> list[str]:
    """The shipped recipes, and those in the current folder."""
    return shipped(incomplete) + _beginning(incomplete, sorted(file.name for file in Path().glob("*.yaml")))


def runs(incomplete: str) -> list[str]:
    """The run folders in runs/, in the current folder, and in the folder that is typed."""
    folders = {Path(), Path("runs"), Path(incomplete[: incomplete.rfind("/") + 1])}
    return _beginning(
        incomplete, sorted({str(file.parent) for folder in folders for file in folder.glob("*/run.json")})
    )


def recipes_and_runs(incomplete: str) -> list[str]:
    """Recipes, then runs."""
    return recipes(incomplete) + runs(incomplete)


def stages(incomplete: str) -> list[str]:
    """The next stage of a list such as `expand,collect`."""
    before, comma, _ = incomplete.rpartition(",")
    others = [name for name in STAGES if name not in before.split(",")]
    return _beginning(incomplete, (f"{before}{comma}{name}" for name in others))


def keys(incomplete: str) -> list[str]:
    """The keys of a recipe, a level at a time."""
    return [key.path for key in _level(incomplete)]


def settings(incomplete: str) -> list[str]:
    """The keys that `--set` takes, a level at a time, and the usual values of a single one.

    A single candidate would end in a space where `.` or `=VALUE` is to follow; so there is a second one if possible.
    """
    from distill.pipeline.recipe_keys import usual_values

    level = [key for key in _level(incomplete) if key.setting == key.path]
    if len(level) != 1:
        return [f"{key.path}{'.' if key.children else '='}" for key in level]
    [key] = level
    if key.children and key.path != incomplete:
        return settings(f"{key.path}.")
    return [f"{key.path}={value}" for value in ("", *usual_values(key))]


def _level(incomplete: str) -> list[Key]:
    """The keys that begin so and have no further dot, each once."""
    from distill.pipeline.recipe_keys import every_key

    keys = (key for key in every_key() if key.path.startswith(incomplete))
    return list({key.path: key for key in keys if key.path.count(".") == incomplete.count(".")}.values())


def _beginning(incomplete: str, candidates: Iterable[str]) -> list[str]:
    return [candidate for candidate in candidates if candidate.startswith(incomplete)]
