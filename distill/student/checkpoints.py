"""The checkpoints of a training run: which run each belongs to, whether it is whole, where to go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distill import chat
from distill.embedded import read_json, write_json
from distill.fingerprints import json_sha256
from distill.student import models
from distill.student.options import TrainOptions

_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
_MARKER = "distill.json"


def identity_of(examples: Sequence[chat.Example], told: dict[str, Any], options: TrainOptions, seed: int) -> str:
    """A hash of all that decides the weights of a run."""
    ids = [[example.input_ids, example.labels] for example in examples]
    machine = [models.default_device().type, *(version(package) for package in _PACKAGES)]
    return json_sha256([ids, told, options.deciding(), seed, machine])


class Checkpoints:
    """The checkpoints of one run, in the student's folder."""

    def __init__(self, student_folder: Path, identity: str, say: Callable[[str], None]) -> None:
        self.folder = student_folder / "checkpoints"
        self.identity = identity
        self.last: Path | None = None
        self._say = say
        self.folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> int:
        """Find the last whole checkpoint and delete all others; returns its step, 0 without one.

        Of several processes the first must have done so before the others look.
        """
        found = sorted(self.folder.glob("checkpoint-*"), key=_step, reverse=True)
        marks = [read_json(folder / _MARKER) for folder in found]
        if any(mark and mark["identity"] != self.identity for mark in marks):
            self._say("the data, the options or the base have changed since the last checkpoint: training starts over")
        for folder, mark in zip(found, marks, strict=True):
            if self.last is None and mark and mark["identity"] == self.identity and _is_whole(folder, mark):
                self.last = folder
            else:
                shutil.rmtree(folder)
        if self.last is None:
            return 0
        self._say(f"going on from step {_step(self.last)}")
        return _step(self.last)

    def mark(self, step: int) -> None:
        """Say that a checkpoint is completely written, and of which run it is."""
        folder = self.folder / f"checkpoint-{step}"
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        write_json(folder / _MARKER, {"identity": self.identity, "sizes": sizes})


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(folder: Path, mark: dict[str, Any]) -> bool:
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != _MARKER}
    return bool(sizes == mark["sizes"])
