"""The training run: (Q)LoRA or full fine-tuning through TRL, with our own loss mask, resumable bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from distill.core import processes
from distill.core.console import Progress, Silent, silent
from distill.core.files import read_json
from distill.core.jsonl import append, whole_rows
from distill.core.weights import fingerprint
from distill.errors import DistillError, RecipeError
from distill.models import loading
from distill.models.device import free_memory
from distill.models.pruning import kept_layers, least_changing
from distill.models.quantization import require_right_gradients
from distill.models.third_party import in_our_words, quiet
from distill.models.token_bytes import MarkedExample, shown, write_masks
from distill.train.build import build
from distill.train.callbacks import TRAIN_LOG, Interrupt, Log, quarantine_row, speed
from distill.train.checkpoints import CHECKPOINTS_AT_ONCE, Checkpoints, identity_of, require_space
from distill.train.dataset import Examples, checked_examples, split_held_out
from distill.train.evaluation import BestCheckpoint, EvaluationCallback, StopCallback, every, held_of
from distill.train.lora import state_of
from distill.train.memory import STATE_BYTES
from distill.train.options import TrainOptions
from distill.train.saving import save
from distill.train.spike_guard import RolledBack, SpikeGuardTrainer
from distill.train.spikes import Quarantine, QuarantineEntry, Spikes, most_quarantined
from distill.train.trackers import require_trackers, trackers
from distill.types import Session


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Results of a training run."""

    rows: int
    """Sessions trained on."""
    too_long: int
    """Sessions over `max_length` tokens, left out."""
    empty: int
    """Sessions without a single token to train, left out."""
    held: int
    """Sessions held out to watch training by."""
    near_held: int
    """Sessions left out because their question is near to that of a held-out one."""
    quarantined: int
    """Sessions excluded during training because of their loss; see quarantined.jsonl."""
    tokens: int
    """Tokens of the sessions trained on, once."""
    trained_tokens: int
    """Those of them that bear on the loss: answers and their end tokens."""
    steps: int
    planned_steps: int
    """More than `steps` where early stopping ended training."""
    best_step: int | None
    """Whose weights the student has, where `best` asked for the best ones; else it has the last."""
    final_loss: float
    """Mean loss over the last tenth of the steps, nats per token."""
    tokens_per_second: float
    """All tokens seen, by the time spent in training steps."""


def train(
    sessions: Sequence[Session],
    student_folder: Path,
    *,
    model: str,
    layers: int | None,
    prune_by: Literal["uniform", "block"] = "uniform",
    template: str,
    options: TrainOptions,
    seed: int,
    fresh: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    show: Callable[[MarkedExample], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train and leave a student in `student_folder`: adapter, tokenizer, logs, masks.json, and base.json last.

    The checkpoints stay, so that what is killed before the student is in use is not trained again.

    Every row passes the mask gate before anything is loaded or written; `show` is given some of them.

    A run that was stopped, even by SIGKILL, goes on from its last whole checkpoint and ends with the very weights of an
    uninterrupted one (on the same machine); Ctrl-C saves the step that is being made. `fresh` starts over instead.
    `callbacks` hear of the trainer's events before ours do. Raises `MaskError` at a fault in a mask, `RunFolderError`
    when data, options or base have changed since the last checkpoint (it says what) or the disk is full, `ModelError`
    when the base cannot be read or too many steps are bad, `DistillError` when nothing is left to train on.
    """
    tell = say or silent
    require_trackers(options.report_to)
    base = loading.materialise(model, say=tell)
    tokenizer = loading.load_tokenizer(base)
    found = checked_examples(sessions, template, tokenizer, options, tell)
    _show(found, template, tokenizer, options, student_folder, show or silent)
    taught, held = split_held_out(found, sessions, options.eval_rows, seed)
    kept = _kept_layers(base, layers, prune_by, taught, tell)
    info: dict[str, Any] = {"model": model, "fingerprint": fingerprint(model), "layers": kept, "template": template}
    info |= {"quantised": options.method == "qlora", "method": options.method}
    job = TrainingJob(student_folder, base, kept, tokenizer, template, taught, held, info, options, seed, callbacks)
    checkpoints = Checkpoints(student_folder, identity_of(taught, info, options, seed), tell)
    if not fresh:
        checkpoints.require_ours()
    with quiet(), in_our_words(student_folder):
        done = _attempts(job, checkpoints, progress or Silent(), tell, fresh=fresh)
    return _result(found, job, done)


def _attempts(
    job: TrainingJob, checkpoints: Checkpoints, progress: Progress, say: Callable[[str], None], *, fresh: bool
) -> TrainingOutcome:
    """Try, and go back before a step that hurt the weights, until the run is through."""
    while True:
        try:
            return attempt(job, checkpoints, progress, say, fresh=fresh)
        except RolledBack as back:
            step, entries, line = back.step, back.entries, str(back)
        checkpoints.forget_after(step - 1)
        set_aside(job, step, entries, line)
        say(line)
        fresh = False
        free_memory()


def _show(
    found: Examples,
    template: str,
    tokenizer: Any,
    options: TrainOptions,
    folder: Path,
    show: Callable[[MarkedExample], None],
) -> None:
    if not processes.is_first():
        return
    rows = shown(found.ids, found.examples, tokenizer, count=options.show_masks)
    folder.mkdir(parents=True, exist_ok=True)
    write_masks(folder / "masks.json", rows, template=template, train_on=options.train_on, checked=found.checked.rows)
    for row in rows:
        show(row)


def _kept_layers(
    base: Path, layers: int | None, by: str, found: Examples, say: Callable[[str], None]
) -> list[int] | None:
    if layers is None:
        return None
    total = read_json(base / "config.json")["num_hidden_layers"]
    if by == "uniform" or layers >= total:
        return list(kept_layers(total, layers))
    with quiet():
        kept = least_changing(loading.load_causal(base), found.examples, layers)
    left_out = sorted(set(range(total)) - set(kept))
    say(f"layers {left_out[0] + 1} to {left_out[-1] + 1} of {total} change the states least and are left out")
    return list(kept)


def _result(found: Examples, job: TrainingJob, done: TrainingOutcome) -> TrainResult:
    steps = done.log.steps
    tail = steps[-max(1, len(steps) // 10) :]
    return TrainResult(
        rows=len(job.found.ids),
        too_long=found.left_out["too_long"],
        empty=found.left_out["empty"],
        held=len(job.held),
        near_held=len(found.ids) - len(job.found.ids) - len(job.held),
        quarantined=len(done.quarantined),
        tokens=sum(len(example.input_ids) for example in job.found.examples),
        trained_tokens=sum(example.trained for example in job.found.examples),
        steps=steps[-1]["step"],
        planned_steps=steps[-1]["steps"],
        best_step=done.best_step,
        final_loss=sum(row["loss"] for row in tail) / len(tail),
        tokens_per_second=speed(steps),
    )


QUARANTINE = "quarantined.jsonl"


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Inputs of a training run."""

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
class TrainingOutcome:
    """Results of an attempt that reached its end."""

    log: Log
    quarantined: list[QuarantineEntry]
    best_step: int | None
    """Whose weights the student has, where the best were asked for."""


def attempt(
    job: TrainingJob, checkpoints: Checkpoints, progress: Progress, say: Callable[[str], None], *, fresh: bool = False
) -> TrainingOutcome:
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
    return TrainingOutcome(log, quarantine.entries, best_step)


def _bytes_to_write(job: TrainingJob, trainer: SpikeGuardTrainer) -> int:
    """Approximate size of student and checkpoints: trainable weights, optimizer state, tokenizer."""
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    student: int = sum(weight.numel() * weight.element_size() for weight in weights)
    state: int = sum(weight.numel() for weight in weights) * STATE_BYTES[job.options.optimizer]
    tokenizer: int = sum(file.stat().st_size for file in job.base.glob("tokenizer*"))
    saved: int = min(CHECKPOINTS_AT_ONCE, math.ceil(len(trainer.plan.steps) / job.options.save_steps))
    return student + tokenizer + saved * (student + state + tokenizer)


def set_aside(job: TrainingJob, step: int, entries: Sequence[QuarantineEntry], line: str) -> None:
    """Leave sessions out from a step on, as of the next attempt."""
    append(job.folder / QUARANTINE, entries)
    append(job.folder / TRAIN_LOG, [quarantine_row(step, entries, line)])


def _guard(job: TrainingJob, trainer: SpikeGuardTrainer, checkpoints: Checkpoints, log: Log) -> Quarantine:
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


def _watch(
    job: TrainingJob, trainer: SpikeGuardTrainer, checkpoints: Checkpoints, log: Log, say: Callable[[str], None]
) -> BestCheckpoint | None:
    """Have the run watched, where there are rows to watch it by."""
    options = job.options
    held = held_of(job.held, job.template, job.tokenizer)
    steps = every(options.eval_steps, len(trainer.plan.steps))
    if not (held and steps):
        _require_nothing_watched(options, len(job.found.ids))
        return None
    best = BestCheckpoint(checkpoints.folder, options.best) if options.best is not None else None
    if best is not None and trainer.is_fsdp_enabled:
        raise RecipeError("train.best keeps whole weights, and FSDP divides them over processes; leave it out there")
    watch = EvaluationCallback(
        held,
        job.folder,
        trainer,
        log,
        every=steps,
        template=job.template,
        tokenizer=job.tokenizer,
        max_tokens=options.eval_tokens,
        stopping=StopCallback(options.early_stopping) if options.early_stopping is not None else None,
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
