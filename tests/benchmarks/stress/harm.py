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
from contextlib import closing
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

LONGEST_SECONDS, LONGEST_TIMES = 45.0, 10
"""Of an invocation, before it counts as hung: seconds, and besides in those of an undisturbed one."""
POLL_SECONDS = 0.002
INTERPRETER_SECONDS = 0.05
"""CPU time until Python runs any code of ours; what a signal does before is Python's own affair."""
DISK_KB = 64_000
"""Of the disk that fills up: somewhat more than a run wants free when it starts."""
ON_A_FULL_DISK = """
cd "$0" && mkdir -p side && mount --bind disk side && mount -t tmpfs -o size=$1k none disk || exit 77
cp -a side/. disk/
left=$2; shift 2
( while [ ! -e fill ]; do sleep 0.01; done
  head -c $(( ($(df --output=avail -k disk | tail -1) - left) * 1024 )) /dev/zero > disk/filler ) &
"$@"; code=$?
kill $! 2>/dev/null; rm -f disk/filler; find side -mindepth 1 -delete; cp -a disk/. side/; exit $code
"""
"""Runs a command with `disk/` in memory, fills it once `fill` exists, and brings back what was written."""


@dataclass(slots=True)
class Site:
    """Where a campaign's invocations run, and how."""

    folder: Path
    recipe: Path
    endpoint: Endpoint
    elsewhere: str
    secrets: Mapping[str, str]
    """By environment variable."""
    seconds: float = 2.0
    """That an undisturbed invocation takes."""
    stages: tuple[str, ...] = ()
    """Of the recipe."""

    @property
    def longest_seconds(self) -> float:
        """After which an invocation counts as hung."""
        return LONGEST_SECONDS + LONGEST_TIMES * self.seconds

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.folder / "disk" / "run"

    def journal(self) -> Path | None:
        """A copy of the journal as the last invocation left it, so that reading mends nothing; `None` without one."""
        copy = self.folder.parent / "journal.sqlite"
        for end in ("", "-wal"):
            Path(f"{copy}{end}").unlink(missing_ok=True)
            if (path := self.run_dir / f"journal.sqlite{end}").exists():
                shutil.copy(path, f"{copy}{end}")
        Path(f"{copy}-shm").unlink(missing_ok=True)
        return copy if copy.exists() and _is_journal(copy) else None

    def spent_usd(self) -> float:
        """USD that the journal counts."""
        if (path := self.journal()) is None:
            return 0.0
        with Journal.open(path, read_only=True) as journal:
            return spent_usd(journal.costs(), {})

    @property
    def log(self) -> str:
        """What the run has logged so far, over all invocations."""
        path = self.run_dir / "run.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""


@dataclass(slots=True)
class Invocation:
    """One invocation, and what was done to it."""

    kind: str
    allowed: tuple[int, ...]
    """Exit codes that it may end with."""
    code: int | None = None
    """`None` where it hung."""
    output: str = ""
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
    started: float = 0.0
    ended: float = 0.0


Process: TypeAlias = subprocess.Popen[bytes]
Harm: TypeAlias = Callable[[Process], object]
"""What is done to a process that has begun."""


def _is_journal(path: Path) -> bool:
    """Whether the file has tables already."""
    with closing(sqlite3.connect(path)) as database:
        return bool(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def invoke(
    site: Site,
    invocation: Invocation,
    *,
    harm: Harm = lambda process: None,
    limit: Callable[[], object] | None = None,
    before: Sequence[str] = (),
    more: Sequence[str] = (),
) -> Invocation:
    """Start the command line, do `harm` to it, and wait for its end."""
    command = [*before, sys.executable, "-m", "distill", "run", str(site.recipe), "--run-dir", str(site.run_dir), *more]
    environment = {
        **os.environ, **site.secrets, "PYTHONPATH": str(ROOT), "TMPDIR": str(site.folder / "tmp"),
        "STRESS_FOLDER": str(site.folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    output = site.folder / "outputs" / f"{len(list((site.folder / 'outputs').iterdir()))} {invocation.kind}.txt"
    invocation.started = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=site.folder, env=environment, stdout=file, stderr=file, start_new_session=True,
            preexec_fn=limit,  # noqa: PLW1509 - it calls nothing that another thread of ours may hold
        )  # fmt: skip
        try:
            harm(process)
            invocation.code = process.wait(site.longest_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            invocation.losses.append(time.monotonic())
    invocation.ended = time.monotonic()
    invocation.output = output.read_text("utf-8", "replace")
    return invocation


def signalled(site: Site, chance: Random, *, kind: str, numbers: tuple[signal.Signals, ...]) -> Invocation:
    """Signals at a random moment, the second one up to half a second after the first."""
    ends = (-signal.SIGKILL,) if signal.SIGKILL in numbers else (130,)
    invocation = Invocation(kind, allowed=(*ends, 0), had_effect=False)
    moment = _moment(site, chance)

    def harm(process: Process) -> None:
        moment(process)
        for number in numbers:
            if process.poll() is not None:
                return
            invocation.is_early |= _cpu_seconds(process) < INTERPRETER_SECONDS
            invocation.had_effect = True
            invocation.signals.append(time.monotonic())
            process.send_signal(number)
            if number == signal.SIGKILL or len(invocation.signals) > 1:
                invocation.losses.append(time.monotonic())
            elif len(numbers) > 1:
                time.sleep(chance.uniform(0.02, 0.5))

    return invoke(site, invocation, harm=harm)


def _cpu_seconds(process: Process) -> float:
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _moment(site: Site, chance: Random) -> Harm:
    """Waits for a random moment: a time, a number of requests, or a line of the log and a little more."""
    way = chance.choice(("start", "time", "requests", "requests", "stage", "stage"))
    seconds = {"start": chance.uniform(0.0, 0.4), "time": chance.uniform(0.1, site.seconds)}.get(
        way, site.longest_seconds
    )
    requests, stage = chance.randint(1, 40), chance.choice(site.stages)
    later, mark = (
        chance.choice((0.0, 0.01, 0.1, 0.3)) * chance.random(),
        f"{stage}: {chance.choice(('started', 'done'))}",
    )

    def wait(process: Process) -> None:
        sold, logged, deadline = len(site.endpoint.ledger), len(site.log), time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            if way == "requests" and len(site.endpoint.ledger) - sold >= requests:
                return
            if way == "stage" and mark in site.log[logged:]:
                time.sleep(later)
                return
            time.sleep(POLL_SECONDS)

    return wait


def limited(site: Site, chance: Random, *, kind: str, limit: int, least: int, most: int) -> Invocation:
    """A low ulimit throughout."""
    value = int(least * (most / least) ** chance.random())
    invocation = Invocation(f"{kind}, {value:,}", allowed=(0, 1), may_lose=True)
    return invoke(site, invocation, limit=partial(resource.setrlimit, limit, (value, value)))


def full_disk(site: Site, chance: Random, *, kind: str) -> Invocation:
    """A disk that fills up at a random moment, to the last few kilobytes."""
    moment, fill = _moment(site, chance), site.folder / "fill"
    fill.unlink(missing_ok=True)
    invocation = Invocation(kind, allowed=(0, 1), may_lose=True, had_effect=False)

    def harm(process: Process) -> None:
        moment(process)
        invocation.had_effect = process.poll() is None
        fill.touch()

    before = ("unshare", "-Urm", "sh", "-c", ON_A_FULL_DISK, str(site.folder), str(DISK_KB), str(chance.randint(0, 60)))
    return invoke(site, invocation, harm=harm, before=before)


def can_fill_disks() -> bool:
    """Whether a file system can be mounted in a name space of our own."""
    command = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def ended_by_endpoint(site: Site, chance: Random, *, kind: str) -> Invocation:
    """One request, at a random place, meets what no run goes on after."""
    noise = fatal(site.elsewhere, chance.choice(sorted(site.secrets.values())))[kind]
    sold, place = len(site.endpoint.ledger), chance.randint(0, 12)
    invocation = Invocation(kind, allowed=(0, 1), had_effect=False)

    def harm(process: Process) -> None:
        while len(site.endpoint.ledger) - sold < place and process.poll() is None:
            time.sleep(POLL_SECONDS)
        site.endpoint.next = noise

    invoke(site, invocation, harm=harm)
    invocation.had_effect, site.endpoint.next = site.endpoint.next is None, None
    return invocation


def small_budget(site: Site, chance: Random, *, kind: str) -> Invocation:
    """A budget that ends soon after what is spent."""
    cap = round(site.spent_usd() + chance.uniform(0.01, 8.0), 4)
    invocation = Invocation(kind, allowed=(0, 3), cap_usd=cap)
    return invoke(site, invocation, more=("--set", f"budget_usd={cap}"))


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
    "little memory": partial(limited, limit=resource.RLIMIT_AS, least=320 * MB, most=1200 * MB),
    "small budget": small_budget,
    **dict.fromkeys(("redirect", "wait of years", "quota in years", "bad key"), ended_by_endpoint),
}
"""By kind."""
