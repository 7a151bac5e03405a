"""Atomic writes, file locks and JSON files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.core.console import Say, _silent
from distill.errors import ModelError, RunFolderError


def cache_dir() -> Path:
    """`$DISTILL_CACHE`, else `$XDG_CACHE_HOME/distill`, else `~/.cache/distill`; it may not exist yet."""
    if own := os.environ.get("DISTILL_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "distill"


# Files


def file_sha256(path: Path) -> str:
    """The file's SHA-256 in hex. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write beside and rename, so that a reader sees the old file or the new one. Raises `OSError`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    beside.replace(path)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make a folder of the cache and write in it. Raises `ModelError` where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ModelError(f"no space left in {folder}; free some, or set DISTILL_CACHE to another disk") from error
        reason = error.strerror or type(error).__name__
        raise ModelError(
            f"the cache {folder} cannot be written ({reason}); set DISTILL_CACHE to a folder of yours"
        ) from error


@contextmanager
def locked(path: Path, *, say: Say | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file, waiting for another process that has it; it ends with the process."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (say or _silent)(f"waiting for another process that works in {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def read_json(path: Path) -> Any:
    """The file's JSON value; `None` where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_atomically(path: Path, pieces: Iterable[str]) -> None:
    """Write text beside `path`, flush it to the disk, and rename. Raises `RunFolderError` when it cannot be written."""
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.writelines(pieces)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror}; free some space or mend the permissions and run again"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
