"""Where a run's recipe came from, and whether another recipe may go on in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.core.files import flatten
from distill.errors import RunFolderError
from distill.recipe import Recipe
from distill.run import students
from distill.run.reading import validated

_DATA = re.compile(r"^(expand\.seeds|collect\.tasks|sources\[\d+\]\.(path|hub))$")


@dataclass(frozen=True, slots=True)
class Origin:
    """The file that a run's recipe was read from; empty for a recipe that was no file."""

    recipe: str = ""
    """Absolute path."""
    sha256: str = ""
    overrides: tuple[str, ...] = ()
    """Keys that were overridden."""

    def after(self, before: Origin, folder: Path) -> Origin:
        """What is recorded next: of the run's own copy, and of a copy of the same file, where that came from before."""
        is_copy = bool(before.recipe) and self.sha256 == before.sha256 and Path(before.recipe).is_file()
        if is_copy:
            return replace(before, overrides=self.overrides)
        if not self.is_own(folder):
            return self
        return replace(before, overrides=tuple(sorted({*before.overrides, *self.overrides})))

    def is_own(self, folder: Path) -> bool:
        """Whether it is the copy in the run's own folder."""
        return self.recipe == str((folder / "recipe.yaml").resolve())


NO_FILE = Origin()


def recorded(folder: Path, record: Mapping[str, Any]) -> Origin:
    """The origin in run.json; an empty one in those of older versions. Raises `RunFolderError` for a damaged one."""
    return validated(Origin, record.get("origin") or {}, folder / "run.json")


def require_owner(folder: Path, record: Mapping[str, Any], recipe: Recipe, origin: Origin) -> None:
    """Raise `RunFolderError` where the folder's run has another recipe, and none of this one's seeds and data.

    Recipes are the same where they come from one file. Data are the same by path or content. Where one of the two has
    neither a file nor data, the names decide.
    """
    if not record or origin.is_own(folder):
        return
    source = recorded(folder, record).recipe
    theirs, mine = (
        {file} - {""} | _data(document)
        for file, document in ((source, students.recipe(folder)), (origin.recipe, recipe.document()))
    )
    is_same = not theirs.isdisjoint(mine) if theirs and mine else record.get("name") in (None, recipe.name)
    if not is_same:
        raise RunFolderError(
            f'{folder} holds the run "{record.get("name")}" of {source or "another recipe"}; this recipe '
            f'("{recipe.name}") is another one, with other seeds and data; give another --run-dir, or go on there with '
            "--takeover (Python: takeover=True)"
        )


def _data(document: Mapping[str, Any]) -> set[str]:
    """Paths, contents and Hub ids of a resolved recipe's seeds, tasks and sources."""
    values = flatten(document, lists=True)
    names = [str(value) for key, value in values.items() if value and _DATA.match(key)]
    return {*names, *(str(values[f"files.{name}"]) for name in names if f"files.{name}" in values)}
