"""Trains a student on kept sessions: (Q)LoRA through TRL, with our own ids and loss mask, exactly resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from distill import processes
from distill.console import Progress, Silent
from distill.embedded import fingerprint, read_json
from distill.student import models
from distill.student.attempt import Done, Job, attempt, set_aside
from distill.student.checkpoints import Checkpoints
from distill.student.examples import Examples, checked_examples
from distill.student.foreign import in_our_words, quiet
from distill.student.freeing import free_memory
from distill.student.guarded import RolledBack
from distill.student.held import parted
from distill.student.identity import identity_of
from distill.student.log import speed
from distill.student.options import TrainOptions
from distill.student.pruning import kept_layers, least_changing
from distill.student.spelling import Shown, shown, write_masks
from distill.student.trackers import require_trackers
from distill.types import Session


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run did."""

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
    """Sessions that were set aside on the way, for the loss they brought about; see quarantined.jsonl."""
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
    """Mean loss over the last tenth of the steps, nats a token."""
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
    show: Callable[[Shown], None] | None = None,
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
    tell = say or _nothing
    require_trackers(options.report_to)
    base = models.materialise(model, say=tell)
    tokenizer = models.load_tokenizer(base)
    found = checked_examples(sessions, template, tokenizer, options, tell)
    _show(found, template, tokenizer, options, student_folder, show or _nothing)
    taught, held = parted(found, sessions, options.eval_rows, seed)
    kept = _kept_layers(base, layers, prune_by, taught, tell)
    told: dict[str, Any] = {"model": model, "fingerprint": fingerprint(model), "layers": kept, "template": template}
    told |= {"quantised": options.method == "qlora", "method": options.method}
    job = Job(student_folder, base, kept, tokenizer, template, taught, held, told, options, seed, callbacks)
    checkpoints = Checkpoints(student_folder, identity_of(taught, told, options, seed), tell)
    if not fresh:
        checkpoints.require_ours()
    with quiet(), in_our_words(student_folder):
        done = _attempts(job, checkpoints, progress or Silent(), tell, fresh=fresh)
    return _result(found, job, done)


def _attempts(
    job: Job, checkpoints: Checkpoints, progress: Progress, say: Callable[[str], None], *, fresh: bool
) -> Done:
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
    found: Examples, template: str, tokenizer: Any, options: TrainOptions, folder: Path, show: Callable[[Shown], None]
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
        kept = least_changing(models.load_causal(base), found.examples, layers)
    left_out = sorted(set(range(total)) - set(kept))
    say(f"layers {left_out[0] + 1} to {left_out[-1] + 1} of {total} change the states least and are left out")
    return list(kept)


def _result(found: Examples, job: Job, done: Done) -> TrainResult:
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


def _nothing(told: object) -> None:
    """Say nothing."""
