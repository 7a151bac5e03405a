"""Where a run's recipe came from, and whether another recipe may go on in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.errors import RunFolderError
from distill.recipe import Recipe
from distill.run import students


@dataclass(frozen=True, slots=True)
class Origin:
    """The file that a run's recipe was read from; empty for a recipe that was no file."""

    recipe: str = ""
    """Absolute path."""
    sha256: str = ""
    overrides: tuple[str, ...] = ()
    """Keys that were overridden."""

    def entry(self, folder: Path, before: Mapping[str, Any]) -> dict[str, Any]:
        """The entry in run.json; `before` is the present one, which stays where the run's own copy was read."""
        if self.is_own(folder):
            keys = {*before.get("overrides", ()), *self.overrides}
            return {**before, "overrides": sorted(keys)} if before else {}
        return {**asdict(self), "overrides": sorted(self.overrides)}

    def is_own(self, folder: Path) -> bool:
        """Whether it is the copy in the run's own folder."""
        return self.recipe == str((folder / "recipe.yaml").resolve())


NO_FILE = Origin()


def require_owner(folder: Path, record: Mapping[str, Any], recipe: Recipe, origin: Origin) -> None:
    """Raise `RunFolderError` where the folder's run has another recipe, and none of this one's seeds and data.

    Recipes are the same where they come from one file. Data are the same by path or content. Where one of the two has
    neither a file nor data, the names decide.
    """
    if not record or origin.is_own(folder):
        return
    source = (record.get("origin") or {}).get("recipe")
    before = students.recipe(folder)
    theirs, mine = _data(before) | ({source} if source else set()), _data(recipe.document())
    mine |= {origin.recipe} if origin.recipe else set()
    is_same = not theirs.isdisjoint(mine) if theirs and mine else record.get("name") in (None, recipe.name)
    if not is_same:
        raise RunFolderError(
            f'{folder} holds the run "{record.get("name")}" of {source or "another recipe"}, and this recipe '
            f"({recipe.name}) has neither its file nor its data; give another --run-dir, or go on there with "
            "--takeover (Python: takeover=True)"
        )


def _data(document: Mapping[str, Any]) -> set[str]:
    """Paths, contents and Hub ids of a resolved recipe's seeds, tasks and sources."""
    sections = {name: document.get(name) or {} for name in ("expand", "collect")}
    sources = document.get("sources") or []
    names = [sections["expand"].get("seeds"), sections["collect"].get("tasks")]
    names += [source.get(key) for source in sources for key in ("path", "hub")]
    files = document.get("files") or {}
    return {f"{value}" for name in names if name for value in (name, files.get(name)) if value}
