"""Resolves a recipe's paths, and adds the SHA-256 of each file it names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from distill.core import assets
from distill.core.embedded import EMBEDDED
from distill.core.hashing import tree_sha256
from distill.core.registry import suggest
from distill.recipe.recipe import Recipe
from distill.recipe.sections import BaseOptions, Compare, Source, Student, Teacher


def resolved(recipe: Recipe, folder: Path) -> tuple[Recipe, list[str]]:
    """The recipe with absolute paths and the SHA-256 of each file it names."""
    faults: list[str] = []
    files: dict[str, str] = {}

    def file(key: str, value: str) -> str:
        path = _resolved(value, folder, folders=key.startswith(("curate.", "compare.metrics.")))
        if path is None:
            faults.append(f"{key}: no file {value}; looked in {folder} and in the shipped prompts/")
            return value
        files[str(path)] = tree_sha256(path)
        return str(path)

    def options(key: str, section: Any) -> Any:
        held = section.options
        if not isinstance(held, BaseOptions) or not held.paths():
            return section
        found = {name: _each_path(getattr(held, name), partial(file, f"{key}.{name}")) for name in held.path_fields}
        return section.model_copy(update={"options": held.model_copy(update=found)})

    changed: dict[str, Any] = {}
    if recipe.curate is not None:
        changed["curate"] = [options(f"curate.{rule.filter}", rule) for rule in recipe.curate]
    if recipe.expand is not None:
        expand = recipe.expand.model_copy(update={"seeds": file("expand.seeds", recipe.expand.seeds)})
        changed["expand"] = options("expand", expand)
    if recipe.collect is not None and recipe.collect.tasks is not None:
        tasks = file("collect.tasks", recipe.collect.tasks)
        changed["collect"] = recipe.collect.model_copy(update={"tasks": tasks})
    if recipe.compare is not None:
        changed["compare"] = _compare_found(recipe.compare, folder, file, options, faults)
    if recipe.sources:
        changed["sources"] = [_source_found(source, folder, files, faults) for source in recipe.sources]
    if recipe.teacher is not None:
        teachers = [_with_model(teacher, "teacher", folder, faults) for teacher in recipe.teachers]
        changed["teacher"] = teachers if isinstance(recipe.teacher, list) else teachers[0]
    changed |= {role: _with_model(one, role, folder, faults) for role, one in recipe.roles.items()}
    if recipe.student is not None:
        changed["student"] = _with_model(recipe.student, "student", folder, faults)
    changed["reuse"] = [_run_folder(value, folder, faults) for value in recipe.reuse]
    faults += [
        f"files: {path} has changed since this recipe was resolved; restore it, or start from the original recipe"
        for path, digest in recipe.files.items()
        if files.get(path, digest) != digest
    ]
    return recipe.model_copy(update={**changed, "files": files}), faults


def _compare_found(
    compare: Compare,
    folder: Path,
    file: Callable[[str, str], str],
    options: Callable[[str, Any], Any],
    faults: list[str],
) -> Compare:
    """The section with the absolute paths of its prompts, recorded answers and local models."""
    changed: dict[str, Any] = {
        "metrics": [options(f"compare.metrics.{one.metric}", one) for one in compare.metrics],
        "answers": {model: file(f"compare.answers.{model}", path) for model, path in compare.answers.items()},
    }
    if compare.prompts is not None:
        changed["prompts"] = file("compare.prompts", compare.prompts)
    for side in ("student", "base"):
        if (section := getattr(compare, side)) is not None:
            changed[side] = _with_model(section, f"compare.{side}", folder, faults)
    return compare.model_copy(update=changed)


def _source_found(source: Source, folder: Path, files: dict[str, str], faults: list[str]) -> Source:
    """The source with the absolute paths of its file or folder and its tokenizer, and the SHA-256 of the first."""
    changed = {}
    for key, value in (("path", source.path), ("tokenizer", source.tokenizer)):
        local = None if value is None or value in EMBEDDED else folder / Path(value).expanduser()
        if local is not None and not local.exists():
            faults.append(f"sources.{source.called}.{key}: no file or folder {value}; looked in {folder}")
        elif local is not None:
            changed[key] = str(local.resolve())
    if "path" in changed:
        files[changed["path"]] = tree_sha256(Path(changed["path"]))
    return source.model_copy(update={"name": source.called, **changed})


Section = TypeVar("Section", Teacher, Student)


def _with_model(section: Section, key: str, folder: Path, faults: list[str]) -> Section:
    """The section with its model's absolute path, where it is a path."""
    if getattr(section, "base_url", None):
        return section
    model, fault = _model_address(section.model, folder)
    faults += [f"{key}.model: {fault}"] if fault else []
    return section.model_copy(update={"model": model})


def _run_folder(value: str, folder: Path, faults: list[str]) -> str:
    """The absolute path of another run: as it stands here, beside the recipe, or by its name in runs/."""
    candidates = [Path(value).expanduser(), folder / value, Path("runs") / value]
    for path in candidates:
        if (path / "journal.sqlite").is_file():
            return str(path.resolve())
    faults.append(f"reuse: {value} is no run with a journal; looked in {', '.join(map(str, candidates))}")
    return value


def _resolved(value: str, folder: Path, *, folders: bool = False) -> Path | None:
    candidates = [Path(value)] if Path(value).is_absolute() else [folder / value, assets.root() / "prompts" / value]
    return next((path.resolve() for path in candidates if path.is_file() or (folders and path.is_dir())), None)


def _each_path(value: Any, resolve: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _each_path(one, resolve) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_each_path(one, resolve) for one in value)
    return resolve(value) if value and value not in EMBEDDED else value


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
