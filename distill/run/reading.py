"""Reads JSON files of a run folder as typed values; reports a damaged one in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import RunFolderError

T = TypeVar("T")


AGAIN = "delete it and run its stage again"


def json_object(path: Path, *, advice: str = AGAIN) -> dict[str, Any]:
    """The JSON object of a file; empty where there is none. Raises `RunFolderError`, which ends with the advice."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is not JSON that can be read ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: found {type(value).__name__}, expected a JSON object; {advice}")
    return value


def validated(kind: type[T], value: Any, where: Path | str) -> T:
    """A JSON value as a dataclass; unknown keys are ignored. Raises `RunFolderError`."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RunFolderError(f"{where}: {key}: {first['msg']}; run its stage again") from error
