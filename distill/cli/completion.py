"""Candidates for shell completion: recipes, runs, stages and keys of a recipe.

Each press of TAB starts a process, so nothing heavy is imported. Where there is no candidate, the shell completes paths.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.pipeline.recipe_keys import Key

STAGES = ("expand", "collect", "curate", "train", "compare", "report")
Candidate = tuple[str, str]
"""A word, and a line of help, which zsh and fish show."""


def recipes(incomplete: str) -> list[Candidate]:
    """The shipped recipes, and those in the current folder."""
    from distill.core import assets

    shipped = [(file.stem, "shipped recipe") for file in sorted(assets.find("recipes").glob("*.yaml"))]
    return _beginning(incomplete, [*shipped, *((file.name, "recipe") for file in sorted(Path().glob("*.yaml")))])


def runs(incomplete: str) -> list[Candidate]:
    """The run folders in runs/, in the current folder, and in the folder that is typed."""
    folders = {Path(), Path("runs"), Path(incomplete[: incomplete.rfind("/") + 1])}
    records = sorted({record for folder in folders for record in folder.glob("*/run.json")})
    return _beginning(incomplete, ((str(record.parent), "run") for record in records))


def recipes_and_runs(incomplete: str) -> list[Candidate]:
    """Recipes, then runs."""
    return recipes(incomplete) + runs(incomplete)


def stages(incomplete: str) -> list[Candidate]:
    """The next stage of a list such as `expand,collect`."""
    before, comma, _ = incomplete.rpartition(",")
    others = [name for name in STAGES if name not in before.split(",")]
    return _beginning(incomplete, ((f"{before}{comma}{name}", "stage") for name in others))


def keys(incomplete: str) -> list[Candidate]:
    """The keys of a recipe, a level at a time."""
    return [(key.path, key.summary) for key in _level(incomplete)]


def settings(incomplete: str) -> list[Candidate]:
    """The keys that `--set` takes, a level at a time, and the usual values of a single one.

    A single candidate would end in a space where `.` or `=VALUE` is to follow; so there is a second one if possible.
    """
    from distill.pipeline.recipe_keys import usual_values

    level = [key for key in _level(incomplete) if key.setting == key.path]
    if len(level) != 1:
        return [(f"{key.path}{'.' if key.children else '='}", key.summary) for key in level]
    [key] = level
    if key.children and key.path != incomplete:
        return settings(f"{key.path}.")
    return [(f"{key.path}={value}", key.summary) for value in ("", *usual_values(key))]


def _level(incomplete: str) -> list[Key]:
    """The keys that begin so and have no further dot, each once."""
    from distill.pipeline.recipe_keys import every_key

    keys = (key for key in every_key() if key.path.startswith(incomplete))
    return list({key.path: key for key in keys if key.path.count(".") == incomplete.count(".")}.values())


def _beginning(incomplete: str, candidates: Iterable[Candidate]) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate[0].startswith(incomplete)]
