"""What a training run says while it goes: train_log.jsonl, the progress, and the stop at a loss that is no number."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from distill import processes
from distill.console import Progress
from distill.errors import ModelError
from distill.rows import append_row, read_jsonl, write_rows
from distill.student.checkpoints import Checkpoints
from distill.student.sft import Trainer


class Log(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Writes train_log.jsonl, reports progress, marks checkpoints, and stops a run whose loss is no number."""

    def __init__(self, path: Path, step: int, trainer: Trainer, checkpoints: Checkpoints, progress: Progress) -> None:
        self._path, self._trainer, self._checkpoints, self._progress = path, trainer, checkpoints, progress
        self.rows = [row for row in read_jsonl(path) if row["step"] <= step] if step and path.exists() else []
        if processes.is_first():
            write_rows(path, self.rows)
        last = self.rows[-1] if self.rows else {"tokens": 0, "seconds": 0.0}
        self._tokens, self._seconds = last["tokens"], last["seconds"]
        self._started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._progress.update(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take one step's figures. Raises `ModelError` when they are no numbers, before a checkpoint is written."""
        if not logs or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ModelError(
                f"training stopped at step {state.global_step} of {state.max_steps}: the loss is {loss}, its gradient "
                f"{norm}; lower train.learning_rate (it is {args.learning_rate:g}) or look at the data"
            )
        row = {
            "step": state.global_step,
            "steps": state.max_steps,
            "epoch": self._trainer.plan.epoch(state.global_step),
            "loss": loss,
            "learning_rate": float(logs["learning_rate"]),
            "grad_norm": norm,
            "tokens": self._tokens + self._trainer.tokens_seen,
            "seconds": round(self._seconds + time.monotonic() - self._started, 3),
        }
        self.rows.append(row)
        if processes.is_first():
            append_row(self._path, row)
        self._progress.update(state.global_step, state.max_steps, f"loss {loss:.3f}, {speed(self.rows):.0f} tokens/s")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint that has just been written, by all processes."""
        self._trainer.accelerator.wait_for_everyone()
        if processes.is_first():
            self._checkpoints.mark(state.global_step)


def speed(rows: Sequence[dict[str, Any]]) -> float:
    """Tokens a second over all rows of the log, prompts and padding counted."""
    return float(rows[-1]["tokens"] / max(rows[-1]["seconds"], 1e-9)) if rows else 0.0
