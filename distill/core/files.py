"""Atomic writes, file locks and JSON files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any

from distill.core.console import Say, silent
from distill.core.json_values import storable
from distill.errors import ModelError, RunFolderError


def cache_dir() -> Path:
    """`$DISTILL_CACHE`, else `$XDG_CACHE_HOME/distill`, else `~/.cache/distill`; it may not exist yet."""
    if own := os.environ.get("DISTILL_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "distill"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Create a folder of the cache, and write to it within the block. Raises `ModelError` where that fails."""
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
def locked(path: Path, *, say: Say = silent) -> Iterator[None]:
    """Hold an exclusive lock on a file, after waiting for its holder; the system releases it when a process ends.

    Raises `OSError` where the file cannot be opened.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"waiting for another process that works in {path.parent}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# Writing


LEFTOVER = re.compile(r"^\..+\.[a-z0-9_]{8}$")
"""Names of the files that `replacing` leaves behind in a killed process."""


def set_usual_modes(path: Path) -> None:
    """Give a file, or a folder with all in it, the permissions of new files: libraries make some for the owner only."""
    for each in (path, *path.rglob("*")):
        if not each.is_symlink():
            each.chmod((0o777 if each.is_dir() else 0o666) & ~_umask())


@cache
def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def make_parent(out: Path) -> None:
    """Make the folders above `out`. Raises `RunFolderError` where that fails."""
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {out}: its folder cannot be made ({error.strerror}); give another path"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to within the block; the file then replaces `path`, so no reader sees half of it.

    It is flushed to the disk before it is renamed, and removed where the block fails. Raises `RunFolderError` when it
    cannot be written.
    """
    new = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        yield new
        with new.open("rb+") as written:  # Windows flushes only what may be written
            os.fsync(written.fileno())
        set_usual_modes(new)
        new.replace(path)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror}; free some space or mend the permissions and run again"
        ) from error
    finally:
        new.unlink(missing_ok=True)


def write_atomically(path: Path, pieces: Iterable[str]) -> None:
    """Write text beside `path`, flush it to the disk, and rename. Raises `RunFolderError` when it cannot be written."""
    with replacing(path) as new, new.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(pieces)


def write_json(path: Path, value: Any) -> None:
    """Write one indented JSON value of core types, atomically. Raises `RunFolderError` when it cannot be written."""
    write_atomically(path, [json_text(value, indent=1) + "\n"])


def require_no_links(run: Path) -> None:
    """Raise `RunFolderError` where a run folder holds a link, which would have other files read or written."""
    for pattern in ("*", "student*/*", "student*/checkpoints/*", "student*/checkpoints/*/*"):
        for path in run.glob(pattern):
            require_no_link(path)


def require_no_link(path: Path) -> None:
    """Raise `RunFolderError` where a path in a run folder is a link."""
    if path.is_symlink():
        raise RunFolderError(
            f"{path} is a link to {os.readlink(path)}; a run reads and writes files of its own only: put a copy in its "
            "place, or remove the link"
        )


def require_free(out: Path) -> None:
    """Raise `RunFolderError` where `out` exists, unless it is an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out} is there already; remove it, or give another --out")


@contextmanager
def building(out: Path, *, faults: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """A folder beside `out` to fill and rename within the block; it is removed at the end unless it was renamed.

    Also removes such folders of killed processes. Raises `RunFolderError` where `out` is not free, and in place of
    `OSError` and of `faults`, which libraries raise where they cannot write.
    """
    import psutil

    require_free(out)
    kinds: tuple[type[Exception], ...] = (OSError, *faults)
    parent = out.absolute().parent
    for rest in parent.glob(f".{out.name}.*.partial"):
        owner = rest.suffixes[-2].removeprefix(".") if len(rest.suffixes) > 1 else ""
        if not (owner.isdigit() and psutil.pid_exists(int(owner))):
            shutil.rmtree(rest, ignore_errors=True)
    folder = parent / f".{out.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True)
        yield folder
    except kinds as error:
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(f"cannot write {out}: {reason}; free some space, or give another --out") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# JSON values


def to_json(value: Any) -> Any:
    """Core types nested in mappings and sequences as a plain JSON value."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    kind: type = type(value)
    if names := field_names(kind):
        return {name: to_json(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Core types and any other values as JSON by the standard: no `NaN`, no `Infinity`; see `storable`."""
    plain = to_json(value)
    try:
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=indent)
        text.encode("utf-8")
    except (ValueError, TypeError):
        return json.dumps(storable(plain), ensure_ascii=False, allow_nan=False, indent=indent)
    return text


def inline_yaml(value: Any) -> str:
    """A value of a recipe as YAML in one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {inline_yaml(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(inline_yaml, value))}]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json_text(value)


@cache
def field_names(kind: type) -> tuple[str, ...]:
    """The names of a dataclass's fields; empty for another type."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


def flatten(value: Any, name: str = "", *, lists: bool = False) -> dict[str, Any]:
    """Nested mappings as one, by dotted key after `name`; empty mappings are left out.

    `lists` flattens lists too: `messages[0].content`.
    """
    if isinstance(value, Mapping):
        items = [(f"{name}.{key}" if name else str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list) and lists:
        items = [(f"{name}[{place}]", inner) for place, inner in enumerate(value)]
    else:
        return {name: value}
    return {path: leaf for key, inner in items for path, leaf in flatten(inner, key, lists=lists).items()}


def read_json(path: Path) -> Any:
    """The file's JSON value; `None` where the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
