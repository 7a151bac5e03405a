"""The training run: (Q)LoRA or full fine-tuning through TRL, with our own loss mask, resumable bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback

from distill.core import processes
from distill.core.console import Progress, Silent, silent
from distill.core.files import write_json
from distill.core.jsonl import whole_rows
from distill.core.weights import fingerprint, read_base, student_fingerprint
from distill.errors import DistillError, RecipeError
from distill.models import loading
from distill.models.device import free_memory
from distill.models.pruning import kept_layers, layers_in, least_changing
from distill.models.third_party import explained_errors, quiet
from distill.models.token_bytes import MarkedExample, marked_examples, write_masks
from distill.train.build import build
from distill.train.callbacks import SKIPPED, Interrupt, Log, speed
from distill.train.checkpoints import CHECKPOINTS_AT_ONCE, Checkpoints, identity_of, require_space
from distill.train.dataset import Examples, checked_examples, split_held_out
from distill.train.evaluation import BestCheckpoint, EvaluationCallback, evaluation_interval, held_out_sessions
from distill.train.lora import initial_adapter
from distill.train.memory import STATE_BYTES
from distill.train.objectives import Collected, TrainingData
from distill.train.objectives.sft import NoOptions, Sft
from distill.train.options import TrainSettings
from distill.train.saving import save
from distill.train.step_guard import QUARANTINE, GuardedTrainer
from distill.train.trackers import require_trackers, trackers
from distill.types import Session

CHECKS = "checks.json"
"""In the student's folder: the self-check of its training, with which no answer changes."""


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
    """Sessions left out because their question is nearly that of a held-out one."""
    quarantined: int
    """Sessions excluded during training because their loss was not finite; see quarantined.jsonl."""
    tokens: int
    """Tokens of those sessions, for one epoch."""
    trained_tokens: int
    """Tokens per epoch that count towards the loss: answers and their end tokens."""
    steps: int
    planned_steps: int
    """More than `steps` after early stopping."""
    best_step: int | None
    """The step whose weights the student has with `train.best`; None for the last."""
    final_loss: float
    """Mean loss over the last tenth of the steps, nats per token."""
    tokens_per_second: float
    """Tokens seen, padding excluded, per second of training steps."""
    objective: dict[str, Any]
    """Facts of the objective; of soft targets `targets`, the share of the trained tokens that have one, and
    `tokenizers`, by teacher the difference from the student's, or `same`; of on_policy which student is `kept`, and
    the held-out divergence before and after."""
    checks: dict[str, Any]
    """The self-check before the first step; also in checks.json."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Inputs of a training run, checked and split."""

    folder: Path
    """Where the student is written."""
    base: Path
    layers: list[int] | None
    """Layers of the base that the student keeps; all when None."""
    tokenizer: Any
    usable: Examples
    """All examples, including held-out ones."""
    examples: Examples
    """Examples to train on."""
    held_out: Sequence[Session]
    """Sessions for evaluations during training."""
    settings: TrainSettings
    info: dict[str, Any]
    """Contents of base.json."""
    objective: Sft
    """What the student learns from, prepared for the examples."""
    made_from: Mapping[str, Any]
    """What decides the weights besides rows, options and base: the objective's options, and what it has prepared."""


def train(
    sessions: Sequence[Session],
    student_folder: Path,
    settings: TrainSettings,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    show: Callable[[MarkedExample], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    collected: Collected | None = None,
) -> TrainResult:
    """Train a student and write it to `student_folder`: adapter, tokenizer, logs, masks.json, and base.json last.

    Every row passes the mask gate before a model is loaded; `show` receives some of the rows.

    A stopped run, even by SIGKILL, resumes from its last complete checkpoint and ends with the same weights as an
    uninterrupted one (on the same machine); Ctrl-C saves the current step. `fresh` starts over instead. Checkpoints are
    kept until the student is in place. `callbacks` receive the trainer's events before our own callbacks; `collected`
    is what the run has of its teachers' answers, for soft targets. Raises
    `MaskError` for a wrong mask, `RunFolderError` when data, options or base have changed since the last checkpoint or
    the disk is full, `ModelError` when the base cannot be read or too many steps were skipped, `DistillError` when
    nothing is left to train on.
    """
    say = say or silent
    require_trackers(settings.options.report_to)
    job = _job(sessions, student_folder, settings, say, show or silent, collected or Collected())
    identity = identity_of(job.examples, job.info, settings.options, settings.seed, objective=job.made_from)
    checkpoints = Checkpoints(student_folder, identity, say)
    if not fresh:
        checkpoints.require_same_run()
    with quiet(), explained_errors(student_folder):
        return _run(job, checkpoints, progress or Silent(), say, fresh=fresh, callbacks=callbacks)


def try_model(sessions: Sequence[Session], settings: TrainSettings, *, say: Callable[[str], None]) -> str:
    """The line of the self-check on these sessions, with the model of a training by these settings; keeps nothing.

    Layers to prune are left out evenly, whatever `prune_by`, for that needs no data. Raises as `train`.
    """
    settings.require_start()
    options = settings.options
    base = loading.materialise(settings.model, say=say)
    tokenizer = loading.load_tokenizer(base)
    examples = checked_examples(sessions, settings.template, tokenizer, options, silent)
    layers = list(kept_layers(layers_in(base), settings.layers)) if settings.layers is not None else None
    if settings.start is not None:
        layers = read_base(settings.start)["layers"]
    with TemporaryDirectory() as folder, quiet(), explained_errors(Path(folder)):
        trainer = build(
            base, layers, tokenizer, examples, options=options, seed=settings.seed, output=Path(folder), say=silent,
            start=settings.start,
        )  # fmt: skip
        line = trainer.checked.line("self-check on rows made of seeds")
        del trainer
    free_memory()
    return line


def _job(
    sessions: Sequence[Session],
    folder: Path,
    settings: TrainSettings,
    say: Callable[[str], None],
    show: Callable[[MarkedExample], None],
    collected: Collected,
) -> TrainingJob:
    settings.require_start()
    options, template = settings.options, settings.template
    base = loading.materialise(settings.model, say=say)
    tokenizer = loading.load_tokenizer(base)
    objective = settings.objective or Sft(NoOptions())
    sessions = objective.select(sessions, settings, tokenizer, say)
    usable = checked_examples(sessions, template, tokenizer, options, say)
    if processes.is_first():
        rows = marked_examples(usable.ids, usable.examples, tokenizer, count=options.show_masks)
        folder.mkdir(parents=True, exist_ok=True)
        checked = usable.checked.rows
        write_masks(folder / "masks.json", rows, template=template, train_on=options.train_on, checked=checked)
        for row in rows:
            show(row)
    examples, held_out = split_held_out(usable, sessions, options.eval_rows, settings.seed)
    layers = _kept_layers(base, settings, examples, say)
    info: dict[str, Any] = {
        "model": settings.model,
        "fingerprint": fingerprint(settings.model),
        "layers": layers,
        "template": template,
        "quantised": options.method == "qlora",
        "method": options.method,
    }
    if settings.start is not None:
        info["previous"] = {"run": str(settings.start.parent), "fingerprint": student_fingerprint(settings.start)}
        say(f"continues the student of {settings.start.parent}")
    data = TrainingData(
        run=folder.parent,
        examples=examples,
        usable=usable,
        sessions={session.id: session for session in sessions},
        held_out=tuple(held_out),
        settings=settings,
        layers=layers,
        tokenizer=tokenizer,
        collected=collected,
        say=say,
    )
    made_from = {**objective.deciding(), **objective.prepare(data)}
    return TrainingJob(
        folder, base, layers, tokenizer, usable, examples, held_out, settings, info, objective, made_from
    )


def _kept_layers(
    base: Path, settings: TrainSettings, examples: Examples, say: Callable[[str], None]
) -> list[int] | None:
    if settings.start is not None:
        continued: list[int] | None = read_base(settings.start)["layers"]
        return continued
    if settings.layers is None:
        return None
    total = layers_in(base)
    if settings.prune_by == "uniform" or settings.layers >= total:
        return list(kept_layers(total, settings.layers))
    with quiet():
        layers = least_changing(loading.load_causal(base), examples.examples, settings.layers)
    left_out = sorted(set(range(total)) - set(layers))
    say(f"layers {left_out[0] + 1} to {left_out[-1] + 1} of {total} change the states least and are left out")
    return list(layers)


def _run(
    job: TrainingJob,
    checkpoints: Checkpoints,
    progress: Progress,
    say: Callable[[str], None],
    *,
    fresh: bool,
    callbacks: Sequence[TrainerCallback],
) -> TrainResult:
    """Build the trainer, train from the last checkpoint, and write the student."""
    options = job.settings.options
    trainer = build(
        job.base,
        job.layers,
        job.tokenizer,
        job.examples,
        options=options,
        seed=job.settings.seed,
        output=checkpoints.folder,
        say=say,
        callbacks=callbacks,
        objective=job.objective,
        start=job.settings.start,
    )
    checks = trainer.checked.as_json()
    say(checks["line"])
    require_space(job.folder, _bytes_to_write(job, trainer))
    job.objective.start(trainer)
    first = initial_adapter(trainer.model, options.lora) if options.method != "full" else None
    with trainer.accelerator.main_process_first():
        checkpoints.open(fresh=fresh)
        if processes.is_first():
            write_json(job.folder / CHECKS, checks)
        log = Log(job.folder, trainer, checkpoints, progress, say)
        _guard(job, trainer, checkpoints, log)
    best = _add_callbacks(job, trainer, checkpoints, log, say)
    for watcher in job.objective.callbacks(log):  # after the evaluations, which they may go by
        trainer.add_callback(watcher)
    interrupt = Interrupt(say)
    trainer.add_callback(interrupt)
    with interrupt.handled():
        trainer.train(resume_from_checkpoint=str(checkpoints.last) if checkpoints.last else None)
    trainer.accelerator.wait_for_everyone()
    best_step = best.load(trainer.model, log.events) if best is not None else None
    save(trainer, job.tokenizer, job.settings.template, job.info, job.folder, first=first)
    trainer.accelerator.end_training()
    return _result(job, log, quarantined=len(trainer.quarantined), best_step=best_step, checks=checks)


def _result(
    job: TrainingJob, log: Log, *, quarantined: int, best_step: int | None, checks: dict[str, Any]
) -> TrainResult:
    steps, usable, examples = log.steps, job.usable, job.examples
    tail = steps[-max(1, len(steps) // 10) :]
    return TrainResult(
        rows=len(examples.ids),
        too_long=usable.left_out["too_long"],
        empty=usable.left_out["empty"],
        held=len(job.held_out),
        near_held=len(usable.ids) - len(examples.ids) - len(job.held_out),
        quarantined=quarantined,
        tokens=sum(examples.lengths()),
        trained_tokens=sum(example.trained for example in examples.examples),
        steps=steps[-1]["step"],
        planned_steps=steps[-1]["steps"],
        best_step=best_step,
        final_loss=sum(row["loss"] for row in tail) / len(tail),
        tokens_per_second=speed(steps),
        objective=dict(job.objective.facts),
        checks=checks,
    )


def _bytes_to_write(job: TrainingJob, trainer: GuardedTrainer) -> int:
    """Approximate size of student and checkpoints: trainable weights, optimizer state, tokenizer."""
    options = job.settings.options
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    student: int = sum(weight.numel() * weight.element_size() for weight in weights)
    state: int = sum(weight.numel() for weight in weights) * STATE_BYTES[options.optimizer]
    tokenizer: int = sum(file.stat().st_size for file in job.base.glob("tokenizer*"))
    saved: int = min(CHECKPOINTS_AT_ONCE, math.ceil(len(trainer.plan.steps) / options.save_steps))
    return student + tokenizer + saved * (student + state + tokenizer)


def _guard(job: TrainingJob, trainer: GuardedTrainer, checkpoints: Checkpoints, log: Log) -> None:
    """Turn on the step guard; sessions that the same run has already quarantined stay so."""
    path = job.folder / QUARANTINE
    entries = list(whole_rows(path)) if checkpoints.is_same_run else []
    trainer.guard(path, entries, [row["step"] for row in log.events if row["event"] == SKIPPED], log.skipped)

    @contextmanager
    def saving(step: int) -> Iterator[None]:
        tokenizer, trainer.processing_class = trainer.processing_class, None  # no resumed run reads it
        try:
            with log.paused(trainer.state, "saving"), checkpoints.saving(step):
                yield
        finally:
            trainer.processing_class = tokenizer

    trainer.saving = saving


def _add_callbacks(
    job: TrainingJob, trainer: GuardedTrainer, checkpoints: Checkpoints, log: Log, say: Callable[[str], None]
) -> BestCheckpoint | None:
    """Add trackers, the log and, with held-out rows, evaluations; returns the keeper of the best weights."""
    options = job.settings.options
    names, arguments = options.report_to, trainer.args
    for tracker in trackers(names, job.folder, checkpoints.step, plan=trainer.plan, arguments=arguments):
        trainer.add_callback(tracker)
    trainer.add_callback(log)
    held_out = held_out_sessions(job.held_out, job.settings.template, job.tokenizer)
    steps = evaluation_interval(options.eval_steps, len(trainer.plan.steps))
    watching = "early_stopping" if options.early_stopping is not None else "best" if options.best is not None else None
    if watching is not None and not (held_out and steps):
        raise DistillError(
            f"train.{watching} goes by held-out rows, and none are held out of {len(job.examples.ids)}; set "
            "train.eval_rows, such as 8"
        )
    if not (held_out and steps):
        return None
    best = BestCheckpoint(checkpoints.folder, options.best) if options.best is not None else None
    if best is not None and trainer.is_fsdp_enabled:
        raise RecipeError("train.best keeps whole weights, and FSDP divides them over processes; leave it out there")
    evaluation = EvaluationCallback(
        held_out,
        job.folder,
        trainer,
        log,
        every=steps,
        template=job.settings.template,
        tokenizer=job.tokenizer,
        max_tokens=options.eval_tokens,
        stopping=options.early_stopping,
        best=best,
        say=say,
        from_start=job.objective.watches_start,
    )
    trainer.add_callback(evaluation)
    return best
