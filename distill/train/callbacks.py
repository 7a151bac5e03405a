"""Training logs and progress.

`train_log.jsonl` has one row per step: `step`, `steps`, `epoch`, `loss` in nats per trained token, `learning_rate`,
`grad_norm` before clipping, `tokens` and `seconds` so far (of training, without evaluations and checkpoints). Rows with
an `event` are not steps: `eval` (see `evaluation`), and `skipped` with `step`, `reason`, `line` and the `ids` of
sessions quarantined from then on; objectives have more (`objectives/rollout_watch`).
`example_losses.jsonl` has one row per example and step: `step`, `id` of the session, its `loss` before that step in
nats per trained token, and `tokens`, the number of its trained tokens. Steps are counted from 1.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from distill.core import processes
from distill.core.console import Progress
from distill.core.jsonl import append, cut
from distill.errors import ModelError
from distill.train.checkpoints import Checkpoints
from distill.train.step_guard import GuardedTrainer

TRAIN_LOG, EXAMPLE_LOSSES = "train_log.jsonl", "example_losses.jsonl"
SKIPPED = "skipped"
"""The event of a step that did not change the weights."""


class Log(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Writes the log, reports progress, marks checkpoints, and stops a run whose loss is not finite."""

    def __init__(
        self,
        folder: Path,
        trainer: GuardedTrainer,
        checkpoints: Checkpoints,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        self._path, self._losses = folder / TRAIN_LOG, folder / EXAMPLE_LOSSES
        self._trainer, self._checkpoints, self._progress, self._say = trainer, checkpoints, progress, say
        rows = cut(self._path, checkpoints.step)
        self.steps = [row for row in rows if "event" not in row]
        self.events = [row for row in rows if "event" in row]
        cut(self._losses, checkpoints.step)
        last = self.steps[-1] if self.steps else {"tokens": 0, "seconds": 0.0}
        self._tokens, self._seconds = last["tokens"], last["seconds"]
        self._started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._progress.update(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Log a step. Raises `ModelError` when its loss or gradient is not finite, before a checkpoint is written."""
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
        self.steps.append(row)
        append(self._path, [row])
        append(self._losses, [{"step": state.global_step, **one} for one in self._trainer.example_losses])
        self._show(state)

    def _show(self, state: Any) -> None:
        row = self.steps[-1]
        note = f"loss {row['loss']:.3f}, {speed(self.steps):.0f} tokens/s"
        self._progress.update(state.global_step, state.max_steps, note)

    def skipped(self, row: dict[str, Any]) -> None:
        """Log a skipped step."""
        self.event({"event": SKIPPED, **row})
        self._say(row["line"])

    def event(self, row: dict[str, Any]) -> None:
        """Log a row that is not a step's."""
        self.events.append(row)
        append(self._path, [row])

    @contextmanager
    def paused(self, state: Any, note: str) -> Iterator[None]:
        """Exclude the time of the block from the training time, and show `note` as progress."""
        started = time.monotonic()
        self._progress.update(state.global_step, state.max_steps, note)
        yield
        self._started += time.monotonic() - started
        if self.steps:
            self._show(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the new checkpoint as complete once all processes have written their part."""
        self._trainer.accelerator.wait_for_everyone()
        if processes.is_first():
            self._checkpoints.mark(state.global_step)


def speed(rows: Sequence[dict[str, Any]]) -> float:
    """Tokens per second over all steps of the log, padding excluded."""
    return float(rows[-1]["tokens"] / max(rows[-1]["seconds"], 1e-9)) if rows else 0.0


WAITING = "interrupted: this step is finished and saved first; Ctrl-C again leaves at once"


class Interrupt(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """First Ctrl-C: finishes the step, saves a checkpoint and ends training; second: ends at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._was_interrupted = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle Ctrl-C within the block, which must end soon after the step; then raises `KeyboardInterrupt`.

        With several processes, which must save together, Ctrl-C ends all of them at once.
        """
        if processes.count() > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._take)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self._was_interrupted:
            raise KeyboardInterrupt

    def _take(self, *_: Any) -> None:
        """Print in another thread, as this one may be interrupted within a print."""
        if self._was_interrupted:
            raise KeyboardInterrupt
        self._was_interrupted = True
        threading.Thread(target=self._say, args=[WAITING], daemon=True).start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop after Ctrl-C."""
        if self._was_interrupted:
            control.should_save = control.should_training_stop = True
