"""SHA-256 of files, values and source code: what decides whether a stage must run again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from distill.embedded import file_sha256
from distill.rows import to_json

__all__ = ["file_sha256", "json_sha256", "source_sha256", "sources_sha256", "tree_sha256"]


def tree_sha256(path: Path, *, without: Collection[str] = ()) -> str:
    """The SHA-256 of a file, or of a folder's files with their relative names (but hidden ones and README.md).

    A README.md is for people: a student's card is written anew after each stage, and makes none of them stale.
    `without` are names in the folder itself that are left out too, with all below them.
    """
    if path.is_file():
        return file_sha256(path)
    files = sorted(
        file for file in path.rglob("*") if file.is_file() and not _left_out(file.relative_to(path), without)
    )
    return json_sha256({str(file.relative_to(path)): file_sha256(file) for file in files})


def _left_out(relative: Path, without: Collection[str]) -> bool:
    return (
        relative.parts[0] in without
        or relative.name == "README.md"
        or any(part.startswith(".") for part in relative.parts)
    )


def json_sha256(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON."""
    text = json.dumps(to_json(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


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
