"""Resolves a recipe's paths, and adds the SHA-256 of each file it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from distill.core import assets
from distill.core.embedded import EMBEDDED
from distill.core.hashing import tree_sha256
from distill.core.registry import suggest
from distill.recipe.recipe import Recipe
from distill.recipe.sections import Source, Student, Teacher

Addressed = TypeVar("Addressed", Teacher, Student)


def resolved(recipe: Recipe, folder: Path) -> tuple[Recipe, list[str]]:
    """The recipe with absolute paths and the SHA-256 of each file it names; and the faults found."""
    paths = _Paths(folder)
    changed: dict[str, Any] = {
        name: paths.section(name, section)
        for name in ("expand", "collect", "compare")
        if (section := getattr(recipe, name)) is not None
    }
    if recipe.curate is not None:
        changed["curate"] = [paths.part(f"curate.{rule.filter}", rule) for rule in recipe.curate]
    if recipe.compare is not None:
        metrics = [paths.part(f"compare.metrics.{one.metric}", one) for one in recipe.compare.metrics]
        sides = {side: paths.model(f"compare.{side}", one) for side, one in recipe.respondents.items()}
        changed["compare"] = changed["compare"].model_copy(update={"metrics": metrics, **sides})
    changed["sources"] = [paths.source(source) for source in recipe.sources]
    teachers = [paths.model("teacher", teacher) for teacher in recipe.teachers]
    changed["teacher"] = teachers if isinstance(recipe.teacher, list) else next(iter(teachers), None)
    changed |= {role: paths.model(role, one) for role, one in recipe.roles.items()}
    if recipe.student is not None:
        changed["student"] = paths.model("student", recipe.student)
    changed["reuse"] = [paths.run_folder(value) for value in recipe.reuse]
    paths.faults += [
        f"files: {path} has changed since this recipe was resolved; restore it, or start from the original recipe"
        for path, digest in recipe.files.items()
        if paths.files.get(path, digest) != digest
    ]
    return recipe.model_copy(update={**changed, "files": paths.files}), paths.faults


@dataclass(slots=True)
class _Paths:
    """Finds what a recipe in `folder` names."""

    folder: Path
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 by absolute path."""
    faults: list[str] = field(default_factory=list)

    def section(self, key: str, section: Any) -> Any:
        """The section with the absolute paths of its path fields, and of those of its part's options."""
        changed = self._fields(key, section, may_be_folder=False)
        if getattr(section, "options", None) is not None:
            options = self._fields(key, section.options, may_be_folder=False)
            changed["options"] = section.options.model_copy(update=options)
        return section.model_copy(update=changed)

    def part(self, key: str, section: Any) -> Any:
        """A rule or metric with the absolute paths of its options, which may be folders."""
        options = self._fields(key, section.options, may_be_folder=True)
        return section.model_copy(update={"options": section.options.model_copy(update=options)})

    def _fields(self, key: str, options: Any, *, may_be_folder: bool) -> dict[str, Any]:
        names = getattr(options, "path_fields", ())
        return {name: self._each(f"{key}.{name}", getattr(options, name), may_be_folder) for name in names}

    def _each(self, key: str, value: Any, may_be_folder: bool) -> Any:
        """A path, a list of paths or paths by name, made absolute."""
        if isinstance(value, Mapping):
            return {name: self._each(f"{key}.{name}", one, may_be_folder) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._each(key, one, may_be_folder) for one in value)
        if not value or value in EMBEDDED:
            return value
        candidates = [self.folder / value, assets.root() / "prompts" / value]
        path = next((one for one in candidates if one.is_file() or (may_be_folder and one.is_dir())), None)
        if path is None:
            self.faults.append(f"{key}: no file {value}; looked in {self.folder} and in the shipped prompts/")
            return value
        return self._hashed(path)

    def _hashed(self, path: Path) -> str:
        name = str(path.resolve())
        self.files[name] = tree_sha256(Path(name))
        return name

    def source(self, source: Source) -> Source:
        """The source with the absolute paths of its file or folder and its tokenizer, and the SHA-256 of the first."""
        changed = {"name": source.called}
        for key, value in (("path", source.path), ("tokenizer", source.tokenizer)):
            local = None if value is None or value in EMBEDDED else self.folder / Path(value).expanduser()
            if local is not None and not local.exists():
                self.faults.append(f"sources.{source.called}.{key}: no file or folder {value}; looked in {self.folder}")
            elif local is not None:
                changed[key] = self._hashed(local) if key == "path" else str(local.resolve())
        return source.model_copy(update=changed)

    def model(self, key: str, section: Addressed) -> Addressed:
        """The section with its model's absolute path, where it is a path."""
        if getattr(section, "base_url", None):
            return section
        model, fault = _model_address(section.model, self.folder)
        self.faults += [f"{key}.model: {fault}"] if fault else []
        return section.model_copy(update={"model": model})

    def run_folder(self, value: str) -> str:
        """The absolute path of another run: relative to the current folder, to the recipe, or its name in runs/."""
        candidates = [Path(value).expanduser(), self.folder / value, Path("runs") / value]
        for path in candidates:
            if (path / "journal.sqlite").is_file():
                return str(path.resolve())
        self.faults.append(f"reuse: {value} is no run with a journal; looked in {', '.join(map(str, candidates))}")
        return value


_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def _model_address(value: str, folder: Path) -> tuple[str, str | None]:
    """An absolute path for a local model, the value itself for an embedded name or a Hub id; or a fault."""
    if value in EMBEDDED:
        return value, None
    local = Path(value).expanduser()
    path = local if local.is_absolute() else folder / local
    if path.exists():
        return str(path.resolve()), None
    if value.startswith((".", "/", "~")) or value.endswith((".gguf", ".safetensors")):
        return value, f"no such file or folder {value}; looked in {folder}"
    if not _HUB_ID.match(value):
        return value, f"{value!r} is neither an embedded model, a local path nor a Hub id (owner/name)"
    if "/" not in value:
        return value, f'unknown model "{value}"{suggest(value, EMBEDDED)} (or a path, or a Hub id owner/name)'
    return value, None
