"""What one invocation of the command line meets: signals, a full disk, low limits, a fatal endpoint, a small budget."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeAlias

import psutil

from distill.engine.budget import spent_usd
from distill.engine.journal.store import Journal
from tests.benchmarks.arena import ROOT
from tests.benchmarks.stress.endpoint import Endpoint, fatal

LONGEST_SECONDS, LONGEST_TIMES = 30.0, 4
"""Of an invocation, before it counts as hung: seconds, and besides in those of an undisturbed one."""
POLL_SECONDS = 0.002
INTERPRETER_SECONDS = 0.05
"""CPU time until Python runs any code of ours; what a signal does before is Python's own affair."""
TRAINING_MEMORY_TIMES = 6
"""The address space that a run takes with torch, in those of one without."""
DISK_KB = 120_000
"""Of the disk that fills up: more than a run wants free when it starts."""
ON_A_FULL_DISK = """
cd "$0" && mkdir -p side && mount --bind disk side && mount -t tmpfs -o size=$1k none disk || exit 77
cp -a side/. disk/; left=$2; shift 2
( while [ ! -e fill ]; do sleep 0.01; done
  head -c $(( ($(df --output=avail -k disk | tail -1) - left) * 1024 )) /dev/zero > disk/filler ) &
"$@"; code=$?
kill $! 2>/dev/null; rm -f disk/filler; find side -mindepth 1 -delete; cp -a disk/. side/; exit $code
"""
"""Runs a command with `disk/` in memory, fills it once `fill` exists, and brings back what was written."""

Process: TypeAlias = subprocess.Popen[bytes]


@dataclass(slots=True)
class Site:
    """Where a run is disturbed."""

    folder: Path
    recipe: Path
    stages: Sequence[str]
    endpoint: Endpoint
    elsewhere: str
    """Address of a server that must not be asked."""
    secrets: Mapping[str, str]
    """By environment variable."""
    seconds: float = 60.0
    """That an undisturbed run takes, or may take."""

    @property
    def longest_seconds(self) -> float:
        """After which an invocation counts as hung."""
        return LONGEST_SECONDS + LONGEST_TIMES * self.seconds

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.folder / "disk" / "run"

    def log(self) -> str:
        """What the run has logged, over all invocations."""
        path = self.run_dir / "run.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def journal(self) -> Path | None:
        """A copy of the journal as the last invocation left it, so that reading mends nothing; `None` without one."""
        copy = self.folder.parent / "journal.sqlite"
        for end in ("", "-wal", "-shm"):
            Path(f"{copy}{end}").unlink(missing_ok=True)
        for end in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copy(self.run_dir / f"journal.sqlite{end}", f"{copy}{end}")
        with closing(sqlite3.connect(copy)) as database:
            is_begun = bool(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        return copy if is_begun else None

    def spent_usd(self) -> float:
        """USD that the journal counts."""
        if (path := self.journal()) is None:
            return 0.0
        with Journal.open(path, read_only=True) as journal:
            return spent_usd(journal.costs(), {})


@dataclass(slots=True)
class Invocation:
    """One invocation, and what was done to it; times are by `time.monotonic`."""

    kind: str
    allowed: tuple[int, ...] = (0, 1)
    """Exit codes that it may end with."""
    code: int | None = None
    """`None` where it hung."""
    output: str = ""
    started: float = 0.0
    ended: float = 0.0
    signals: list[float] = field(default_factory=list)
    """When it was asked to stop."""
    losses: list[float] = field(default_factory=list)
    """When answers in flight may have been lost."""
    may_lose: bool = False
    """Whether they may be lost at any time, as nothing can be written."""
    cap_usd: float | None = None
    is_early: bool = False
    """Whether a signal came before Python ran any code of ours."""
    had_effect: bool = True
    """Whether the event came before the invocation's end."""


def invoke(
    site: Site,
    invocation: Invocation,
    *,
    harm: Callable[[Process], object] = lambda process: None,
    limit: Callable[[], object] | None = None,
    before: Sequence[str] = (),
    more: Sequence[str] = (),
) -> Invocation:
    """Start the command line, do `harm` to it, and wait for its end; `before` and `more` enclose the command."""
    command = [*before, sys.executable, "-m", "distill", "run", str(site.recipe), "--run-dir", str(site.run_dir), *more]
    ours = {"PYTHONPATH": str(ROOT), "TMPDIR": str(site.folder / "tmp"), "STRESS_FOLDER": str(site.folder)}
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str(site.folder / "cache")}
    outputs = site.folder / "outputs"
    path = outputs / f"{len(list(outputs.iterdir())):02} {invocation.kind}.txt"
    invocation.started = time.monotonic()
    with path.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=site.folder, env={**os.environ, **site.secrets, **ours, **quiet}, stdout=output, stderr=output,
            start_new_session=True, preexec_fn=limit,  # noqa: PLW1509 - it takes no lock
        )  # fmt: skip
        try:
            harm(process)
            invocation.code = process.wait(site.longest_seconds)
        except subprocess.TimeoutExpired:
            invocation.losses.append(time.monotonic())
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    invocation.ended = time.monotonic()
    invocation.output = path.read_text("utf-8", "replace")
    return invocation


def _moment(site: Site, chance: Random) -> Callable[[Process], None]:
    """Waits for a random moment: a time, the earlier the likelier; a request; or a line of the log, and up to 0.3 s."""
    way = chance.choice(("time", "request", "stage"))
    seconds = site.seconds * chance.random() ** 2 if way == "time" else site.longest_seconds
    requests, later = chance.randint(1, 40), chance.choice((0.0, 0.02, 0.3)) * chance.random()
    mark = f"{chance.choice(site.stages)}: {chance.choice(('started', 'done'))}"

    def wait(process: Process) -> None:
        sold, logged, deadline = len(site.endpoint.ledger), len(site.log()), time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            if way == "request" and len(site.endpoint.ledger) - sold >= requests:
                return
            if way == "stage" and mark in site.log()[logged:]:
                time.sleep(later)
                return
            time.sleep(POLL_SECONDS)

    return wait


def signalled(site: Site, chance: Random, *, kind: str, numbers: tuple[signal.Signals, ...]) -> Invocation:
    """Signals at a random moment, the second one up to half a second after the first."""
    ends = (-signal.SIGKILL, 0) if signal.SIGKILL in numbers else (130, 0, *(-number for number in numbers[1:]))
    invocation, moment = Invocation(kind, ends, had_effect=False), _moment(site, chance)

    def harm(process: Process) -> None:
        moment(process)
        for number in numbers:
            if invocation.signals:
                time.sleep(chance.uniform(0.02, 0.5))
            if process.poll() is not None:
                return
            times = psutil.Process(process.pid).cpu_times()
            invocation.is_early |= times.user + times.system < INTERPRETER_SECONDS
            invocation.had_effect = True
            invocation.signals.append(time.monotonic())
            process.send_signal(number)
            if number == signal.SIGKILL or len(invocation.signals) > 1:
                invocation.losses.append(time.monotonic())

    return invoke(site, invocation, harm=harm)


def limited(site: Site, chance: Random, *, kind: str, limit: int, least: int, most: int) -> Invocation:
    """A low ulimit throughout, between `least` and `most`."""
    value = int(least * (most / least) ** chance.random())
    if limit == resource.RLIMIT_AS and "train" in site.stages:
        value *= TRAINING_MEMORY_TIMES
    invocation = Invocation(f"{kind}, {value:,}", may_lose=True)
    return invoke(site, invocation, limit=partial(resource.setrlimit, limit, (value, value)))


def full_disk(site: Site, chance: Random, *, kind: str) -> Invocation:
    """A disk that fills up at a random moment, to the last few kilobytes."""
    moment, fill = _moment(site, chance), site.folder / "fill"
    fill.unlink(missing_ok=True)
    invocation = Invocation(kind, may_lose=True)

    def harm(process: Process) -> None:
        moment(process)
        invocation.had_effect = process.poll() is None
        fill.touch()

    script = ("unshare", "-Urm", "sh", "-c", ON_A_FULL_DISK, str(site.folder), str(DISK_KB), str(chance.randint(0, 60)))
    return invoke(site, invocation, harm=harm, before=script)


def can_fill_disks() -> bool:
    """Whether a file system can be mounted in a name space of our own."""
    command = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, capture_output=True, check=False).returncode


def ended_by_endpoint(site: Site, chance: Random, *, kind: str) -> Invocation:
    """One request, at a random place, meets what no run goes on after."""
    noise = fatal(site.elsewhere, chance.choice(sorted(site.secrets.values())))[kind]
    invocation, place = Invocation(kind), len(site.endpoint.ledger) + chance.randint(0, 12)

    def harm(process: Process) -> None:
        while len(site.endpoint.ledger) < place and process.poll() is None:
            time.sleep(POLL_SECONDS)
        site.endpoint.next = noise

    invoke(site, invocation, harm=harm)
    invocation.had_effect, site.endpoint.next = site.endpoint.next is None, None
    return invocation


def small_budget(site: Site, chance: Random, *, kind: str) -> Invocation:
    """A budget that ends soon after what is spent."""
    cap = round(site.spent_usd() + chance.uniform(0.01, 8.0), 4)
    return invoke(site, Invocation(kind, (0, 3), cap_usd=cap), more=("--set", f"budget_usd={cap}"))


KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
MB = 2**20
EVENTS: dict[str, Callable[..., Invocation]] = {
    "SIGKILL": partial(signalled, numbers=(KILL,)),
    "SIGTERM": partial(signalled, numbers=(TERM,)),
    "SIGINT": partial(signalled, numbers=(INT,)),
    "SIGINT twice": partial(signalled, numbers=(INT, INT)),
    "SIGTERM, SIGINT": partial(signalled, numbers=(TERM, INT)),
    "full disk": full_disk,
    "few open files": partial(limited, limit=resource.RLIMIT_NOFILE, least=16, most=64),
    "small files": partial(limited, limit=resource.RLIMIT_FSIZE, least=16_000, most=400_000),
    "little memory": partial(limited, limit=resource.RLIMIT_AS, least=512 * MB, most=1200 * MB),
    "small budget": small_budget,
    **dict.fromkeys(("redirect", "wait of years", "quota in years", "bad key"), ended_by_endpoint),
}
"""By kind."""
