"""Hashes of files, values and texts, and canonical JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from distill.core.files import to_json


def text_sha256(text: str) -> str:
    """The text's SHA-256 in hex; a lone surrogate counts as a question mark."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def hash64(text: str) -> int:
    """A number below 2**64 from a text's BLAKE2b, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def hash_share(text: str) -> float:
    """A number in [0, 1) from a text's SHA-256, the same on every machine."""
    return int(text_sha256(text)[:16], 16) / 2**64


def unused_tag(text: str) -> str:
    """Eight hexadecimal digits that do not occur in the text, the same for the same text."""
    tag = ""
    while not tag or tag in text:
        tag = text_sha256(f"{tag}{text}")[:8]
    return tag


def file_sha256(path: Path) -> str:
    """The file's SHA-256 in hex. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(path: Path, *, without: Collection[str] = ()) -> str:
    """The SHA-256 of a file, or of a folder's files with their relative names, except hidden ones and README.md.

    A README.md is for people: a student's card is rewritten after each stage, and must not make a stage stale.
    `without` are further names in the folder that are left out with everything below them.
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
    return text_sha256(text)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> str:
    """JSON that is equal for equal values: sorted keys, ASCII, no spaces, `1.0` as `1`, without defaults."""
    return _ENCODER.encode(_plain(value))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        fields_of = _defaults(type(value))
        return {name: _plain(item) for name, default in fields_of if (item := getattr(value, name)) != default}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    raise TypeError(f"a {type(value).__name__} has no canonical JSON")


@cache
def _defaults(kind: type) -> tuple[tuple[str, Any], ...]:
    """Name and default of each field; `MISSING`, which equals no value, for a required field."""
    return tuple(
        (field.name, field.default if field.default_factory is MISSING else field.default_factory())
        for field in fields(kind)
    )
