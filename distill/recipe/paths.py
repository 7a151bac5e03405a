"""Makes the paths in a recipe absolute, and records the SHA-256 of each file it names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from distill.core import assets
from distill.core.embedded import EMBEDDED
from distill.core.hashing import tree_sha256
from distill.core.registry import suggest
from distill.errors import RecipeError
from distill.recipe.recipe import Recipe
from distill.recipe.sections import Source, Student, Teacher

WithModel = TypeVar("WithModel", Teacher, Student)
NOT_DATA = ("/proc", "/sys", "/dev")
"""Folders of the system that hold the environment, memory and devices in place of files."""
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def resolve_paths(recipe: Recipe, folder: Path) -> tuple[Recipe, list[str]]:
    """The recipe with absolute paths and the SHA-256 of each file it names, and one line for each fault."""
    paths = _Paths(folder)
    updates: dict[str, Any] = {
        name: paths.section(name, section)
        for name in ("expand", "collect", "compare")
        if (section := getattr(recipe, name)) is not None
    }
    if recipe.curate is not None:
        updates["curate"] = [paths.section(f"curate.{rule.filter}", rule, may_be_folder=True) for rule in recipe.curate]
    if recipe.compare is not None:
        metrics = [
            paths.section(f"compare.metrics.{one.metric}", one, may_be_folder=True) for one in recipe.compare.metrics
        ]
        sides = {side: paths.model(f"compare.{side}", one) for side, one in recipe.respondents.items()}
        updates["compare"] = updates["compare"].model_copy(update={"metrics": metrics, **sides})
    updates["sources"] = [paths.source(source) for source in recipe.sources]
    teachers = [paths.model("teacher", teacher) for teacher in recipe.teachers]
    updates["teacher"] = teachers if isinstance(recipe.teacher, list) else next(iter(teachers), None)
    updates |= {role: paths.model(role, one) for role, one in recipe.roles.items()}
    if recipe.student is not None:
        updates["student"] = paths.model("student", recipe.student)
    updates["reuse"] = [paths.run_folder(value) for value in recipe.reuse]
    paths.faults += [
        f"files: {path} has changed since this recipe was resolved; restore it, or start from the original recipe"
        for path, digest in recipe.files.items()
        if paths.files.get(path, digest) != digest
    ]
    return recipe.model_copy(update={**updates, "files": paths.files}), paths.faults


@dataclass(slots=True)
class _Paths:
    """Looks up the files that a recipe in `folder` names."""

    folder: Path
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 by absolute path."""
    faults: list[str] = field(default_factory=list)

    def section(self, key: str, section: Any, *, may_be_folder: bool = False) -> Any:
        """The section with its path fields, and those of its part's options, made absolute."""
        updates: dict[str, Any] = {
            name: self._each(f"{key}.{name}", getattr(section, name), may_be_folder)
            for name in getattr(section, "path_fields", ())
        }
        if getattr(section, "options", None) is not None:
            updates["options"] = self.section(key, section.options, may_be_folder=may_be_folder)
        return section.model_copy(update=updates)

    def _each(self, key: str, value: Any, may_be_folder: bool) -> Any:
        """A path, a list of paths or paths by name, made absolute."""
        if isinstance(value, Mapping):
            return {name: self._each(f"{key}.{name}", one, may_be_folder) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._each(key, one, may_be_folder) for one in value)
        if not value or value in EMBEDDED:
            return value
        with self._faults_of(key):
            path = find(value, self.folder, assets.root() / "prompts", may_be_folder=may_be_folder)
            if path is not None:
                return self._add(path)
            self.faults.append(f"{key}: no file {value}; looked in {self.folder} and in the shipped prompts/")
        return value

    def _add(self, path: Path) -> str:
        self.files[str(path)] = tree_sha256(path)
        return str(path)

    @contextmanager
    def _faults_of(self, key: str) -> Iterator[None]:
        """Turns what goes wrong with a path in the block into a fault of the key."""
        try:
            yield
        except (OSError, ValueError, RuntimeError, RecipeError) as error:
            self.faults.append(f"{key}: {getattr(error, 'strerror', None) or error}; give another path")

    def source(self, source: Source) -> Source:
        """The source with its file or folder (hashed) and its tokenizer (not hashed) as absolute paths."""
        updates = {"name": source.display_name}
        for key, value in (("path", source.path), ("tokenizer", source.tokenizer)):
            if value is None or value in EMBEDDED:
                continue
            where = f"sources.{source.display_name}.{key}"
            with self._faults_of(where):
                path = find(value, self.folder)
                if path is None:
                    self.faults.append(f"{where}: no file or folder {value}; looked in {self.folder}")
                else:
                    updates[key] = self._add(path) if key == "path" else str(path)
        return source.model_copy(update=updates)

    def model(self, key: str, section: WithModel) -> WithModel:
        """The section with its model's absolute path, where the model is a local one."""
        value = section.model
        if getattr(section, "base_url", None) or value in EMBEDDED:
            return section
        with self._faults_of(f"{key}.model"):
            if (path := find(value, self.folder)) is not None:
                return section.model_copy(update={"model": str(path)})
            if value.startswith((".", "/", "~")) or value.endswith((".gguf", ".safetensors")):
                raise RecipeError(f"no such file or folder {value}; looked in {self.folder}")
            if not _HUB_ID.match(value):
                raise RecipeError(f"{value!r} is no embedded model, local path or Hub id (owner/name)")
            if "/" not in value:
                suggestion = suggest(value, EMBEDDED)
                raise RecipeError(f'unknown model "{value}"{suggestion} (or a path, or a Hub id owner/name)')
        return section

    def run_folder(self, value: str) -> str:
        """The absolute path of another run: relative to the current folder, to the recipe, or its name in runs/."""
        with self._faults_of("reuse"):
            if (journal := find(f"{value}/journal.sqlite", Path(), self.folder, Path("runs"))) is not None:
                return str(journal.parent)
            places = ", ".join(map(str, (Path(value), self.folder / value, Path("runs") / value)))
            self.faults.append(f"reuse: {value} is no run with a journal; looked in {places}")
        return value


def find(value: str, *folders: Path, may_be_folder: bool = True) -> Path | None:
    """The resolved path of a file or folder in the first of the folders that has it.

    Raises `RecipeError` for one in `NOT_DATA`, and for a folder with links to there, and what looking it up raises.
    """
    for folder in folders:
        path = folder / Path(value).expanduser()
        _require_data(path)
        if path.is_file():
            return path.resolve()
        if may_be_folder and path.is_dir():
            for each in path.rglob("*"):
                if each.is_symlink():
                    _require_data(each)
            return path.resolve()
    return None


def _require_data(path: Path) -> None:
    """Raise `RecipeError` for a path in `NOT_DATA`, as written or with links followed."""
    for place in (Path(os.path.abspath(path)), path.resolve()):
        if any(place.is_relative_to(one) for one in NOT_DATA):
            raise RecipeError(f"{path} lies in {', '.join(NOT_DATA[:-1])} or {NOT_DATA[-1]}, which no recipe may read")
