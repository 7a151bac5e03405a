"""The run folder's lock, its record run.json, and its log."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import distill
from distill.core import console, processes
from distill.core.files import LEFTOVER, require_no_links, to_json, write_atomically, write_json
from distill.core.hashing import json_sha256
from distill.engine.journal.records import StageSends
from distill.engine.journal.store import NAME, Journal
from distill.errors import RunFolderError, RunLocked
from distill.recipe import Recipe
from distill.run import decisive, students
from distill.run.layout import run_named
from distill.run.origin import NO_FILE, Origin, recorded, require_owner
from distill.run.reading import json_object, validated

REPORTED_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "openai", "aiohttp")
FORMAT = 2
"""Version of run.json; the first one was unnumbered, and had one hash over inputs, options and sources."""
NOTE_SECONDS = 5.0
"""Interval at which the number of sends is written to run.json."""
ACCEPTABLE = "failures within collect.max_failed"
"""Detail of a stage that is partly done, and good enough for later stages."""
MIN_FREE_BYTES = 50_000_000
"""A run does not start with less free disk space than this."""


@dataclass(slots=True)
class StageRecord:
    """One stage's entry in run.json."""

    status: str = "running"
    """`running`, `done`, `partial` or `failed`."""
    started: str = ""
    seconds: float = 0.0
    revision: int = 0
    """Revision of the stage's code; 0 in records made before there were revisions."""
    counts: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    usd: float | None = None
    """Spent over all invocations, where the teacher has a price."""
    costs: list[dict[str, Any]] = field(default_factory=list)
    """Sends, tokens and USD over all invocations, by teacher and outcome (`kept`, `retried`, `wasted`, `in flight`)."""
    peak_memory_bytes: int | None = None
    """Peak resident memory of this process and its children together, sampled twice a second."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the recipe that determined the outputs, by key, without defaults; see `decisive`."""
    inputs: dict[str, str] = field(default_factory=dict)
    """SHA-256 by file, as of `outputs`."""
    outputs: dict[str, str] = field(default_factory=dict)
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The contents of run.json, or of a student's training.json."""

    name: str = ""
    version: str = ""
    created: str = ""
    recipe_sha256: str = ""
    teacher: Mapping[str, Any] | None = None
    teachers: Sequence[Mapping[str, Any]] = ()
    """All teachers, where there are several."""
    versions: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """In training.json: the recipe that the student was trained by."""

    @property
    def all_teachers(self) -> Sequence[Mapping[str, Any]]:
        """Every teacher and other endpoint of the recipe."""
        return self.teachers or ([self.teacher] if self.teacher else [])

    def counts(self, stage: str) -> dict[str, Any]:
        """Counts of a stage; empty where it has not run."""
        return self.stages[stage].counts if stage in self.stages else {}


class Run:
    """One run folder, writable by one process; read-only in other processes of a launcher."""

    def __init__(self, folder: Path, recipe: Recipe, origin: Origin = NO_FILE) -> None:
        self.folder = folder
        self.recipe = recipe
        self._origin = origin
        self._writes = processes.is_first()
        self._record = _read_record(folder)
        self._writing = threading.Lock()

    def stage(self, name: str) -> Mapping[str, Any] | None:
        """A stage's entry in run.json; None when it never ran."""
        stage: Mapping[str, Any] | None = self._record.get("stages", {}).get(name)
        return stage

    def accounts_before(self) -> list[dict[str, Any]]:
        """Stages and recipe of a folder made before run.json recorded options, and those of a student set aside."""
        if "stages" not in self._record or "format" in self._record:
            return []
        own = {"stages": self._record["stages"], "recipe": students.recipe(self.folder)}
        return [own, *([self._record["student"]] if "student" in self._record else [])]

    def changes(self, name: str, current_record: StageRecord) -> list[str] | None:
        """Differences of the stage as it would begin now from when it was last done; None where it never was.

        With a few failures it was done as well, but for the same options it goes on, and the result is None.

        A stage whose inputs, options and outputs are the same is current, whatever the revision of its code. A student
        counts by the training that made it, whatever unfinished trainings came after.
        """
        entries = [self.stage(name), self._own_training() if name == "train" else None]
        finished = [one for one in entries if one is not None and one["status"] == "done"]
        if not finished and entries[0] is not None and is_finished(entries[0]):
            return self._differences(entries[0], current_record) or None
        differences = [self._differences(one, current_record) for one in finished]
        current = next((one for one, differences in zip(finished, differences, strict=True) if not differences), None)
        if current is not None and current is not entries[0]:
            self._put(name, current)
        return [] if current is not None else differences[0] if differences else None

    def _differences(self, entry: Mapping[str, Any], new: StageRecord) -> list[str]:
        if "options" not in entry:
            return ["its options are not recorded"]
        was, now = (decisive.completed(one["options"], one["revision"]) for one in (entry, asdict(new)))
        inputs = entry["inputs"].keys() | new.inputs.keys()
        inputs_changed = [name for name in sorted(inputs) if entry["inputs"].get(name) != new.inputs.get(name)]
        outputs_changed = [
            output for output, info in entry["outputs"].items() if students.sha256(self.folder, output) != info
        ]
        return [
            *decisive.differences(was, now, decisive.defaults(self.recipe)),
            *(f"{input} has changed" for input in inputs_changed),
            *(f"{output} is not as it was left" for output in outputs_changed),
        ]

    def _own_training(self) -> Mapping[str, Any] | None:
        training = students.training(self.folder, self._record)
        return training["stages"]["train"] if training is not None else None

    def begin(self, name: str, record: StageRecord) -> None:
        """Record that a stage starts."""
        record.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.save(name, record)

    def save(self, name: str, record: StageRecord, outputs: Iterable[str] = ()) -> None:
        """Write the stage's entry, with the SHA-256 of its outputs that exist."""
        if not self._writes:
            return
        digests = {output: students.sha256(self.folder, output) for output in outputs}
        record.outputs = {output: digest for output, digest in digests.items() if digest is not None}
        self._put(name, {item.name: getattr(record, item.name) for item in fields(record)})

    def _put(self, name: str, entry: Mapping[str, Any]) -> None:
        if not self._writes:
            return
        with self._writing:
            self._record["stages"] = {**self._record.get("stages", {}), name: dict(entry)}
            write_json(self.folder / "run.json", self._record)

    def hold_against(self, journal: Journal, *, new_journal: bool = False) -> None:
        """Check that the journal has every send that run.json counts.

        With `new_journal`, missing sends are recorded as lost, and stay spent. Without it they raise `RunFolderError`:
        they would be bought again, and the budget would start from zero.
        """
        in_journal, lost, none = journal.sent(), self.lost_sends, StageSends()
        losses = {}
        for stage, sent in _sends_of(self._record).items():
            here = in_journal.get(stage, none)
            if sent.sends > here.sends + lost.get(stage, none).sends:
                losses[stage] = StageSends(sent.sends - here.sends, max(0.0, sent.usd - here.usd))
        if losses and not new_journal:
            raise RunFolderError(_loss(journal.path, losses, in_journal))
        if losses:
            self._record["lost"] = {stage: asdict(sent) for stage, sent in {**lost, **losses}.items()}
        self.note(in_journal)

    @property
    def lost_sends(self) -> dict[str, StageSends]:
        """Sends that journals have lost, by stage."""
        return {stage: StageSends(**sent) for stage, sent in self._record.get("lost", {}).items()}

    def note(self, in_journal: Mapping[str, StageSends]) -> None:
        """Write the sends of each stage, those that are lost included."""
        lost_sends, none = self.lost_sends, StageSends()
        sent = {}
        for stage in dict.fromkeys((*in_journal, *lost_sends)):
            here, gone = in_journal.get(stage, none), lost_sends.get(stage, none)
            sent[stage] = asdict(StageSends(here.sends + gone.sends, here.usd + gone.usd))
        with self._writing:
            if sent != self._record.get("sent", {}):
                self._record["sent"] = sent
                if "name" in self._record:
                    write_json(self.folder / "run.json", self._record)

    def describe(self, teachers: Sequence[Mapping[str, Any]]) -> None:
        """Write the recipe, and the facts of run.json about the whole run."""
        if not self._writes:
            return
        own = students.set_aside(self.folder, self._record)
        document = self.recipe.to_yaml()
        path = self.folder / "recipe.yaml"
        if not path.exists() or path.read_text(encoding="utf-8") != document:
            write_atomically(path, [document])
        facts = {
            "format": FORMAT,
            "name": self.recipe.name,
            "version": distill.__version__,
            "recipe_sha256": json_sha256(self.recipe.document()),
            "created": self._record.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
            "chosen": students.deciding_options(self.recipe),
            "teacher": dict(teachers[0]) if teachers else None,
            **({"teachers": [dict(teacher) for teacher in teachers]} if len(teachers) > 1 else {}),
            "versions": versions(),
            **({"student": own} if own is not None else {}),
            "origin": to_json(self._origin.after(recorded(self.folder, self._record), self.folder)),
        }
        with self._writing:
            if any(self._record.get(key) != value for key, value in facts.items()):
                entries: dict[str, Any] = {k: self._record[k] for k in ("stages", "sent", "lost") if k in self._record}
                self._record = {**facts, "stages": {}, **entries}
                write_json(self.folder / "run.json", self._record)


def is_finished(entry: Mapping[str, Any]) -> bool:
    """Whether a stage's entry is that of a stage that is done, a few failures aside."""
    return entry["status"] == "done" or (entry["status"], entry["detail"]) == ("partial", ACCEPTABLE)


def versions() -> dict[str, str]:
    """Installed versions of the packages that affect results; read without importing them."""
    by_package = {}
    for package in REPORTED_PACKAGES:
        with suppress(PackageNotFoundError):
            by_package[package] = version(package)
    return by_package


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    record = json_object(path, advice="delete it: the stages run again, the answers stay bought")
    if record.get("format", 1) > FORMAT:
        raise RunFolderError(
            f"{path} has format {record['format']}, of a newer distill ({record.get('version')}); this one"
            f" ({distill.__version__}) reads formats up to {FORMAT}: install the newer one"
        )
    return record


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of a folder, for reading only. Raises `RunFolderError` when the folder is no run."""
    require_no_links(folder)
    record = _read_record(folder)
    if not record:
        raise RunFolderError(f"{folder} is no run folder: it has no run.json; {_whereabouts(folder)}")
    return record


def _whereabouts(folder: Path) -> str:
    """Where a run may be that is not in `folder`."""
    if inside := sorted(path.parent for path in folder.glob("*/run.json")):
        return f"name one of the runs in it, such as {inside[0]}"
    usual = run_named(folder.name)
    return f'did you mean "{usual}"?' if usual is not None else "start one with `distill run RECIPE`"


def run_record(folder: Path) -> RunRecord:
    """run.json of a folder, typed. Raises `RunFolderError` when the folder is no run, or the file is damaged."""
    return validated(RunRecord, read_record(folder), folder / "run.json")


def _sends_of(record: Mapping[str, Any]) -> dict[str, StageSends]:
    """The sends in run.json, by stage; earlier versions kept them with the costs of each stage."""
    if "sent" in record:
        return {stage: StageSends(**sent) for stage, sent in record["sent"].items()}
    costs = {name: stage.get("costs") or [] for name, stage in record.get("stages", {}).items()}
    return {
        name: StageSends(sum(cost["sends"] for cost in rows), sum(cost["usd"] or 0.0 for cost in rows))
        for name, rows in costs.items()
    }


def _loss(path: Path, losses: Mapping[str, StageSends], in_journal: Mapping[str, StageSends]) -> str:
    sends, usd = sum(sent.sends for sent in losses.values()), sum(sent.usd for sent in losses.values())
    present = sum(sent.sends for stage, sent in in_journal.items() if stage in losses)
    return (
        f"{path} has {present:,} of the {present + sends:,} sends of {', '.join(losses)} that run.json counts; what is"
        f" missing ({console.money(usd)}) would be bought again: restore it from a copy, or accept the loss, which"
        f" stays spent of the budget; type: distill run {path.parent} --new-journal"
    )


@contextmanager
def journal_of(run: Run, *, reuse: Sequence[Journal] = (), new_journal: bool = False) -> Iterator[Journal]:
    """The run's journal, checked against run.json, which is kept up to date with it. Raises `RunFolderError`."""
    with Journal.open(run.folder / NAME, reuse=reuse) as journal:
        run.hold_against(journal, new_journal=new_journal)
        ended = threading.Event()
        notes = threading.Thread(target=_note_sends, args=(run, ended), daemon=True)
        notes.start()
        try:
            yield journal
        finally:
            ended.set()
            notes.join()
            _note(run, journal)


def _note_sends(run: Run, ended: threading.Event) -> None:
    """Keep run.json close to the journal, so that it is only seconds behind after a kill."""
    while not ended.wait(NOTE_SECONDS):
        with suppress(RunFolderError), Journal.open(run.folder / NAME, read_only=True) as journal:
            _note(run, journal)


def _note(run: Run, journal: Journal) -> None:
    with suppress(OSError, RunFolderError):  # the stage itself reports faults of the disk
        run.note(journal.sent())


@contextmanager
def opened(folder: Path, recipe: Recipe, *, origin: Origin = NO_FILE, takeover: bool = False) -> Iterator[Run]:
    """Make or continue a run folder: lock it against a second writer, and log to it.

    Of several processes of a launcher, the first has the lock and the log. Raises `RunFolderError` where it belongs to
    another recipe (see `require_owner`; not with `takeover`) or cannot be written, `RunLocked` where another process
    writes in it.
    """
    _make_folder(folder)
    with _locked(folder) if processes.is_first() else nullcontext():
        run = Run(folder, recipe, origin)
        if not takeover:
            require_owner(folder, run._record, recipe, origin)
        if processes.is_first():
            students.settle(folder)
            for leftover in filter(LEFTOVER.match, os.listdir(folder)):  # of a process killed while it wrote
                (folder / leftover).unlink()
        with console.observed(_log(folder / "run.log")):
            yield run


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_no_links(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunFolderError(
            f"cannot make the run folder {folder}: {error.strerror}; give another --run-dir"
        ) from error
    if free < MIN_FREE_BYTES:
        raise RunFolderError(
            f"{folder}: {free // 1_000_000} MB free on this disk, at least {MIN_FREE_BYTES // 1_000_000} MB needed; "
            "free some space, or give another --run-dir"
        )


def _locked(folder: Path) -> AbstractContextManager[Any]:
    from filelock import FileLock, Timeout

    try:
        return FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout as error:
        raise RunLocked(
            f"{folder} is in use by another distill process; wait for it, or give another --run-dir"
        ) from error
    except OSError as error:
        raise RunFolderError(f"cannot write in {folder}: {error.strerror}; give another --run-dir") from error


def _log(path: Path) -> Any:
    def write(line: str) -> None:
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        with path.open("a", encoding="utf-8") as log:
            log.write(f"{stamp} {line}\n")

    return write
