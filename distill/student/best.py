"""Which evaluation was best, whether training should end, and the weights of the best one.

Both go by the evaluations in the log alone, so that a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distill import processes
from distill.student.options import EarlyStopping

FIELDS = {"nll": "eval_loss", "stop_rate": "stop_rate", "length_ratio": "length_ratio"}
"""Where in an evaluation's row each value stands."""


def badness(row: dict[str, Any], watch: str) -> float:
    """The value so that less is better; infinite where there is none. A length is as bad as its ratio is far from 1."""
    value = row[FIELDS[watch]]
    if value is None or not math.isfinite(value):
        return math.inf
    if watch == "length_ratio":
        return abs(math.log(value)) if value > 0 else math.inf
    return -value if watch == "stop_rate" else float(value)


def evaluations(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations among the events of a log."""
    return [row for row in events if row["event"] == "eval"]


def best_of(events: Sequence[dict[str, Any]], watch: str, *, min_delta: float = 0.0) -> int | None:
    """The place of the best evaluation: one that is better by more than `min_delta` than the best before it."""
    best: int | None = None
    values = [badness(row, watch) for row in evaluations(events)]
    for place, value in enumerate(values):
        if value < math.inf and (best is None or value < values[best] - min_delta):
            best = place
    return best


class Stopping:
    """Ends training when evaluations get no better."""

    def __init__(self, options: EarlyStopping) -> None:
        self._options = options

    def reached(self, events: Sequence[dict[str, Any]]) -> str:
        """One line that says why training ends; empty while it goes on."""
        watch, patience = self._options.watch, self._options.patience
        rows, best = evaluations(events), best_of(events, watch, min_delta=self._options.min_delta)
        since = len(rows) - 1 - (best if best is not None else -1)
        if since < patience:
            return ""
        told = f"since step {rows[best]['step']}" if best is not None else "so far"
        return f"early stopping: no better {watch} {told}, in {since} evaluations (train.early_stopping.patience)"


class Best:
    """Keeps what has been learnt at the best evaluation, in safetensors beside the checkpoints."""

    def __init__(self, folder: Path, watch: str) -> None:
        self._folder, self._watch = folder, watch

    def step(self, events: Sequence[dict[str, Any]]) -> int | None:
        """Of the best evaluation."""
        place = best_of(events, self._watch)
        return evaluations(events)[place]["step"] if place is not None else None

    def consider(self, model: Any, events: Sequence[dict[str, Any]]) -> None:
        """Keep the weights where the last evaluation is the best; the ones before stay until a checkpoint is past."""
        from safetensors.torch import save_file

        rows = evaluations(events)
        if self.step(events) != rows[-1]["step"]:
            return
        if not processes.is_first():
            return
        path = self._path(rows[-1]["step"])
        beside = path.with_suffix(".part")
        save_file({name: weight.detach().cpu().contiguous() for name, weight in _learnt(model)}, beside)
        beside.replace(path)

    def forget_worse(self, events: Sequence[dict[str, Any]]) -> None:
        """Delete what no run that goes on from here can end with."""
        best = self.step(events)
        if not processes.is_first():
            return
        for path in self._folder.glob("best-*"):
            if best is None or path != self._path(best):
                path.unlink()

    def load(self, model: Any, events: Sequence[dict[str, Any]]) -> int | None:
        """Put the best weights back into the model; returns their step."""
        from safetensors.torch import load_file

        step = self.step(events)
        if step is None:
            return None
        kept = load_file(self._path(step))
        with torch.no_grad():
            for name, weight in _learnt(model):
                weight.copy_(kept[name])
        return step

    def _path(self, step: int) -> Path:
        return self._folder / f"best-{step}.safetensors"


def _learnt(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
