"""One attempt at a training run, from its last checkpoint to the student: guarded, logged and watched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from distill.console import Progress
from distill.errors import DistillError, RecipeError
from distill.student.adapter import state_of
from distill.student.best import Best, Stopping
from distill.student.build import build
from distill.student.checkpoints import CHECKPOINTS_AT_ONCE, Checkpoints, require_space
from distill.student.examples import Examples
from distill.student.gradients import require_right_gradients
from distill.student.guarded import Guarded
from distill.student.guards import Quarantine, Quarantined, Spikes, most_quarantined
from distill.student.interrupt import Interrupt
from distill.student.lines import append, whole_rows
from distill.student.log import TRAIN_LOG, Log, quarantine_row
from distill.student.memory import STATE_BYTES
from distill.student.options import TrainOptions
from distill.student.saving import save
from distill.student.trackers import trackers
from distill.student.watch import Watch, every, held_of
from distill.types import Session

QUARANTINE = "quarantined.jsonl"


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be trained on what."""

    folder: Path
    """The student's."""
    base: Path
    layers: list[int] | None
    """Those that are kept; all when None."""
    tokenizer: Any
    template: str
    found: Examples
    held: Sequence[Session]
    """Held-out sessions to watch training by."""
    told: dict[str, Any]
    """What base.json will say."""
    options: TrainOptions
    seed: int
    callbacks: Sequence[TrainerCallback]


@dataclass(frozen=True, slots=True)
class Done:
    """What an attempt that came to its end says."""

    log: Log
    quarantined: list[Quarantined]
    best_step: int | None
    """Whose weights the student has, where the best were asked for."""


def attempt(
    job: Job, checkpoints: Checkpoints, progress: Progress, say: Callable[[str], None], *, fresh: bool = False
) -> Done:
    """Train, and write the student. Raises `RolledBack` where it is to be done again from an earlier checkpoint."""
    trainer = build(
        job.base,
        job.layers,
        job.tokenizer,
        job.found,
        options=job.options,
        seed=job.seed,
        output=checkpoints.folder,
        say=say,
        callbacks=job.callbacks,
    )
    require_space(job.folder, _bytes_to_write(job, trainer))
    require_right_gradients(trainer.model)
    first = state_of(trainer.model, job.options.lora) if job.options.method != "full" else None
    with trainer.accelerator.main_process_first():
        checkpoints.open(fresh=fresh)
        log = Log(job.folder, trainer, checkpoints, progress, say)
        quarantine = _guard(job, trainer, checkpoints, log)
    for tracker in trackers(
        job.options.report_to, job.folder, checkpoints.step, plan=trainer.plan, arguments=trainer.args
    ):
        trainer.add_callback(tracker)
    trainer.add_callback(log)
    best = _watch(job, trainer, checkpoints, log, say)
    interrupt = Interrupt(say)
    trainer.add_callback(interrupt)
    with interrupt.heard():
        trainer.train(resume_from_checkpoint=str(checkpoints.last) if checkpoints.last else None)
    trainer.accelerator.wait_for_everyone()
    best_step = best.load(trainer.model, log.events) if best is not None else None
    save(trainer, job.tokenizer, job.template, job.told, job.folder, first=first)
    trainer.accelerator.end_training()
    return Done(log, quarantine.entries, best_step)


def _bytes_to_write(job: Job, trainer: Guarded) -> int:
    """About what the student and its checkpoints take: what learns, the optimizer's state of it, and the tokenizer."""
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    student: int = sum(weight.numel() * weight.element_size() for weight in weights)
    state: int = sum(weight.numel() for weight in weights) * STATE_BYTES[job.options.optimizer]
    tokenizer: int = sum(file.stat().st_size for file in job.base.glob("tokenizer*"))
    saved: int = min(CHECKPOINTS_AT_ONCE, math.ceil(len(trainer.plan.steps) / job.options.save_steps))
    return student + tokenizer + saved * (student + state + tokenizer)


def set_aside(job: Job, step: int, entries: Sequence[Quarantined], line: str) -> None:
    """Leave sessions out from a step on, as of the next attempt."""
    append(job.folder / QUARANTINE, entries)
    append(job.folder / TRAIN_LOG, [quarantine_row(step, entries, line)])


def _guard(job: Job, trainer: Guarded, checkpoints: Checkpoints, log: Log) -> Quarantine:
    """Sessions that were set aside stay so when the same run goes on."""
    path = job.folder / QUARANTINE
    entries = list(whole_rows(path)) if checkpoints.begun else []
    quarantine = Quarantine(path, most_quarantined(job.options.guard, len(job.found.ids)), entries)
    step, ids = log.last_taken()
    places = {id_: place for place, id_ in enumerate(job.found.ids)}

    @contextmanager
    def saving(step: int) -> Iterator[None]:
        with log.paused(trainer.state, "saving"), checkpoints.saving(step):
            yield

    trainer.guard(
        quarantine,
        Spikes(job.options.guard, [row["loss"] for row in log.steps]),
        tell=log.quarantined,
        saving=saving,
        previous=(step, [places[id_] for id_ in ids]),
    )
    return quarantine


def _watch(job: Job, trainer: Guarded, checkpoints: Checkpoints, log: Log, say: Callable[[str], None]) -> Best | None:
    """Have the run watched, where there are rows to watch it by."""
    options = job.options
    held = held_of(job.held, job.template, job.tokenizer)
    steps = every(options.eval_steps, len(trainer.plan.steps))
    if not (held and steps):
        _require_nothing_watched(options, len(job.found.ids))
        return None
    best = Best(checkpoints.folder, options.best) if options.best is not None else None
    if best is not None and trainer.is_fsdp_enabled:
        raise RecipeError("train.best keeps whole weights, and FSDP divides them over processes; leave it out there")
    watch = Watch(
        held,
        job.folder,
        trainer,
        log,
        every=steps,
        template=job.template,
        tokenizer=job.tokenizer,
        max_tokens=options.eval_tokens,
        stopping=Stopping(options.early_stopping) if options.early_stopping is not None else None,
        best=best,
        say=say,
    )
    trainer.add_callback(watch)
    return best


def _require_nothing_watched(options: TrainOptions, rows: int) -> None:
    if options.early_stopping is not None or options.best is not None:
        name = "early_stopping" if options.early_stopping is not None else "best"
        raise DistillError(
            f"train.{name} goes by held-out rows, and none are held out of {rows}; set train.eval_rows, such as 8"
        )
