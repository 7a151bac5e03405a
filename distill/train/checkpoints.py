"""Training checkpoints: identity of the run they belong to, integrity, and where to resume.

`student/checkpoints/` holds `identity.json` (everything that determines the run's weights) and the last two
`checkpoint-STEP/`. A checkpoint is complete once it holds the mark `distill.json`, written last: the SHA-256 of the
identity and of every file. Optimizer and random states are pickles, PyTorch's format: they are read only from a
checkpoint with a valid mark, and then only tensors and numbers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from distill.core import processes
from distill.core.files import flatten, read_json, set_usual_modes, write_json
from distill.core.hashing import file_sha256, json_sha256
from distill.errors import ModelError, RunFolderError, some_of
from distill.models import device
from distill.models.third_party import is_of_the_disk, reason_of
from distill.recipe.validation import is_removed
from distill.run.decisive import OLD_DEFAULTS, shown
from distill.train.dataset import Examples
from distill.train.options import TrainOptions

MARK = "distill.json"
IDENTITY = "identity.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
OWN_PICKLES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "training_args.bin")
"""Pickles in a checkpoint that distill writes, besides rng_state*.pth."""
CHECKPOINTS_AT_ONCE = 3
"""Most on disk: the last two, and the next while it is written."""


def require_space(student_folder: Path, size: int) -> None:
    """Raise `RunFolderError` where the disk lacks room for `size` bytes; existing checkpoints count as free."""
    if not processes.is_first():
        return
    student_folder.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_size for file in (student_folder / "checkpoints").rglob("*") if file.is_file())
    free = shutil.disk_usage(student_folder).free
    if free + there < size:
        raise RunFolderError(
            f"a student and its checkpoints need about {(size - there) / 1e6:,.0f} MB more in {student_folder}, "
            f"and {free / 1e6:,.0f} MB are free; free some space (`distill clean`), or give another --run-dir"
        )


class Checkpoints:
    """The checkpoints of one run, in the student's folder."""

    def __init__(self, student_folder: Path, identity: Identity, say: Callable[[str], None]) -> None:
        self.folder = student_folder / "checkpoints"
        self.last: Path | None = None
        """Checkpoint to resume from."""
        self.is_same_run = False
        """Whether the folder holds checkpoints of this very run."""
        self._student, self._identity, self._say = student_folder, identity, say
        self._sha256 = identity.sha256

    @property
    def step(self) -> int:
        """Steps done at that checkpoint."""
        return step_of(self.last) if self.last is not None else 0

    def open(self, *, fresh: bool = False) -> None:
        """Find the last complete checkpoint, delete incomplete ones after it, and claim the folder for this run.

        `fresh` deletes all checkpoints. With several processes the first must have returned before the others begin.
        Raises as `require_same_run`.
        """
        if fresh and processes.is_first():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.require_same_run()
        self.folder.mkdir(parents=True, exist_ok=True)
        info = self._recorded()
        if info is not None and not changes(info, self._identity):
            self._identity = replace(self._identity, settings=info.settings)  # by which its checkpoints are marked
            self._sha256 = self._identity.sha256
        self.is_same_run = info is not None and info.sha256 == self._sha256
        folders = self._newest_first()
        self.last = next((folder for folder in folders if self._is_whole(folder)), None)
        if processes.is_first():
            for folder in folders:
                if step_of(folder) > self.step:
                    shutil.rmtree(folder)
            write_json(self.folder / IDENTITY, asdict(self._identity))
        if self.last is None:
            return
        if info is not None and (differences := machine_changes(info, self._identity)):
            self._say(f"resuming, but not bit-for-bit: {'; '.join(differences)} changed since the last checkpoint")
        self._say(f"going on from step {self.step}")

    def require_same_run(self) -> None:
        """Raise `RunFolderError` where the checkpoints belong to another run, naming the differences.

        Raises `ModelError` where one holds a pickle that distill does not write.
        """
        folders = self._newest_first()
        for folder in folders:
            _require_own_pickles(folder)
        if any((folder / MARK).exists() for folder in folders):
            self._require_same()

    def mark(self, step: int) -> None:
        """Mark a checkpoint as complete and as this run's."""
        folder = self.folder / f"checkpoint-{step}"
        set_usual_modes(folder)
        files = {file.name: file_sha256(file) for file in folder.iterdir() if file.is_file()}
        write_json(folder / MARK, {"identity": self._sha256, "files": files})

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """While a checkpoint is written: deletes it where the disk is full.

        The `RunFolderError` then raised names the checkpoint from which training can resume.
        """
        try:
            yield
        except Exception as error:  # tokenizers raises nothing narrower
            if not is_of_the_disk(error):
                raise
            folder = self.folder / f"checkpoint-{step}"
            shutil.rmtree(folder, ignore_errors=True)
            raise RunFolderError(self._unsaved(step, error)) from error

    def _unsaved(self, step: int, error: Exception) -> str:
        steps = [step_of(folder) for folder in self._newest_first() if self._is_whole(folder)]
        free = shutil.disk_usage(self.folder).free
        state = (
            f"the state of step {steps[0]} is kept, and training goes on from it" if steps else "there is no earlier"
        )
        return (
            f"the checkpoint of step {step} cannot be written in {self.folder} ({reason_of(error)}, {free / 1e6:.0f} "
            f"MB free); {state}: free some space and run the same command again"
        )

    def _newest_first(self) -> list[Path]:
        """Checkpoint folders."""
        folders = (folder for folder in self.folder.glob("checkpoint-*") if folder.is_dir())
        return sorted(folders, key=step_of, reverse=True)

    def _is_whole(self, folder: Path) -> bool:
        mark = read_json(folder / MARK)
        if not isinstance(mark, dict) or mark.get("identity") != self._sha256:
            return False
        files = {file.name: file_sha256(file) for file in folder.iterdir() if file.is_file() and file.name != MARK}
        return bool(files == mark.get("files"))

    def _recorded(self) -> Identity | None:
        """Identity of the run whose checkpoints are in the folder."""
        info = read_json(self.folder / IDENTITY)
        fits = isinstance(info, dict) and info.keys() == asdict(self._identity).keys()
        return Identity(**info) if fits else None

    def _require_same(self) -> None:
        old = self._recorded()
        if old is None:
            raise RunFolderError(f"{self.folder} is of another version of distill; {self._start_over()}")
        if differences := changes(old, self._identity):
            raise RunFolderError(
                f"{self.folder} was begun with something else: {'; '.join(differences)}. Put it back to go on from "
                f"there, or {self._start_over()}"
            )

    def _start_over(self) -> str:
        return f"to start over, type: distill train {self._student.parent} --redo train"


def step_of(checkpoint: Path) -> int:
    """Steps done at a checkpoint; -1 for a folder of another name."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _require_own_pickles(folder: Path) -> None:
    """Pickles can run code when they are loaded, so any that distill does not write is refused."""
    names = [file.name for file in folder.rglob("*") if file.suffix in PICKLES]
    foreign = [name for name in names if name not in OWN_PICKLES and not name.startswith("rng_state")]
    if foreign:
        raise ModelError(
            f"{folder} was not written by distill: {foreign[0]} is a pickle, which can run code when it is read; "
            "remove that folder (weights come from safetensors or GGUF)"
        )


PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
_LEFT_OUT = "(left out)"


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that determines the weights of a run, as JSON values."""

    rows: list[list[str]]
    """Session id and SHA-256 of its ids and labels, in order."""
    settings: dict[str, Any]
    """By recipe key, such as `train.learning_rate`."""
    machine: dict[str, str]
    """Device and package versions; with others, training resumes, but not bit-for-bit."""

    @property
    def sha256(self) -> str:
        """Hash of what a resumed run must have in common."""
        return json_sha256([self.rows, self.settings])


def identity_of(
    examples: Examples,
    info: Mapping[str, Any],
    options: TrainOptions,
    seed: int,
    *,
    objective: Mapping[str, Any] = MappingProxyType({}),
) -> Identity:
    """The identity of a run; `info` is what base.json says, `objective` what decides about an objective but `sft`."""
    rows = [
        [id_, json_sha256([example.input_ids, example.labels])[:16]]
        for id_, example in zip(examples.ids, examples.examples, strict=True)
    ]
    deciding = {name: value for name, value in options.deciding().items() if name not in _without_effect(options)}
    settings = flatten(deciding, "train")
    deciding_info = ("model", "fingerprint", "layers", "template")
    student = {f"student.{key}": info[key] for key in deciding_info if key in info}
    if "previous" in info:
        student["student.continues"] = info["previous"]["fingerprint"]
    place = device.training_device(options.device)
    machine = {"device": place.type, **{package: version(package) for package in PACKAGES}}
    if place.type == "mps":
        machine["dtype"] = str(device.compute_dtype(options.dtype, place)).removeprefix("torch.")
    return Identity(rows, {**student, **settings, **objective, "seed": seed}, machine)


def _without_effect(options: TrainOptions) -> set[str]:
    """Options that change no weight: those of evaluations, unless early stopping or `best` depends on them."""
    matters = options.early_stopping is not None or options.best is not None
    return {"eval_rows"} | (set() if matters else {"eval_steps", "eval_tokens"})


def _defaults() -> dict[str, Any]:
    """Values that count for keys missing in an identity of an earlier version."""
    old = {key: old for key, (_, old, _) in OLD_DEFAULTS.items()}
    return flatten(TrainOptions().model_dump(mode="json"), "train") | old


def changes(old: Identity, new: Identity) -> list[str]:
    """Differences of `new`, one short text each; empty where a run can be resumed."""
    settings = {key: value for key, value in old.settings.items() if not is_removed(key)}
    before = {**{key: value for key, value in _defaults().items() if key in new.settings}, **settings}
    fields = sorted(before.keys() | new.settings.keys())
    pairs = [(name, before.get(name, _LEFT_OUT), new.settings.get(name, _LEFT_OUT)) for name in fields]
    different = [(name, was, now) for name, was, now in pairs if was != now]
    reread = any(name.startswith("student.") for name, *_ in different)
    info = [f"{name} {shown(was)} → {shown(now)}" for name, was, now in different]
    return info + _rows(old, new, reread=reread)


def machine_changes(old: Identity, new: Identity) -> list[str]:
    """Device and packages that differ in `new`."""
    return [
        f"{name} {old.machine.get(name, _LEFT_OUT)} → {now}"
        for name, now in new.machine.items()
        if old.machine.get(name) != now
    ]


def _rows(old: Identity, new: Identity, *, reread: bool) -> list[str]:
    """Differences of rows; `reread` means that another template or tokenizer has changed them all."""
    was, now = ({row[0]: row[1] for row in one.rows} for one in (old, new))
    ids_by_kind = {
        "added": [id_ for id_ in now if id_ not in was],
        "removed": [id_ for id_ in was if id_ not in now],
        "changed": [] if reread else [id_ for id_ in now if id_ in was and was[id_] != now[id_]],
    }
    info = [
        f"{len(ids)} row{'s' if len(ids) > 1 else ''} {how} ({some_of(ids)})" for how, ids in ids_by_kind.items() if ids
    ]
    moved = not info and not reread and old.rows != new.rows
    return ["the rows are in another order"] if moved else info
