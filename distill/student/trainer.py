"""Trains a student on kept sessions: (Q)LoRA through TRL, with our own ids and loss mask, exactly resumable."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from distill import processes
from distill.console import Progress, Silent
from distill.embedded import fingerprint, read_json
from distill.student import models
from distill.student.adapter import state_of
from distill.student.build import build
from distill.student.checkpoints import Checkpoints, identity_of
from distill.student.examples import Examples, checked_examples
from distill.student.foreign import in_our_words, quiet
from distill.student.log import Log, speed
from distill.student.options import TrainOptions
from distill.student.pruning import kept_layers, least_changing
from distill.student.saving import save
from distill.student.spelling import Shown, shown, write_masks
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
    tokens: int
    """Tokens of the sessions, once."""
    trained_tokens: int
    """Those of them that bear on the loss: answers and their end tokens."""
    steps: int
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
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    show: Callable[[Shown], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train and leave a student in `student_folder`: adapter, tokenizer, logs, masks.json, and base.json last.

    Every row passes the mask gate before anything is loaded or written; `show` is given some of them.

    A run that was stopped, even by SIGKILL, goes on from its last whole checkpoint and ends with the very weights of
    an uninterrupted one (on the same machine); if data, options or base have changed since, it starts over and says so.
    `callbacks` hear of the trainer's events before ours do. Raises `MaskError` at a fault in a mask, `ModelError` when
    the base cannot be read or the loss is no number, `DistillError` when nothing is left to train on.
    """
    tell = say or _nothing
    base = models.materialise(model, say=tell)
    tokenizer = models.load_tokenizer(base)
    found = checked_examples(sessions, template, tokenizer, options, tell)
    _show(found, template, tokenizer, options, student_folder, show or _nothing)
    kept = _kept_layers(base, layers, prune_by, found, tell)
    told: dict[str, Any] = {"model": model, "fingerprint": fingerprint(model), "layers": kept, "template": template}
    told |= {"quantised": options.method == "qlora", "method": options.method}
    checkpoints = Checkpoints(student_folder, identity_of(found.examples, told, options, seed), tell)
    with quiet(), in_our_words(student_folder):
        trainer = build(
            base,
            kept,
            tokenizer,
            found,
            options=options,
            seed=seed,
            output=checkpoints.folder,
            say=tell,
            callbacks=callbacks,
        )
        first = state_of(trainer.model, options.lora) if options.method != "full" else None
        with trainer.accelerator.main_process_first():
            done = checkpoints.resume()
        log = Log(student_folder / "train_log.jsonl", done, trainer, checkpoints, progress or Silent())
        trainer.add_callback(log)
        trainer.train(resume_from_checkpoint=str(checkpoints.last) if checkpoints.last else None)
        save(trainer, tokenizer, template, told, student_folder, first=first)
        trainer.accelerator.end_training()
    if processes.is_first():
        shutil.rmtree(checkpoints.folder)
    return _result(found, log)


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


def _result(found: Examples, log: Log) -> TrainResult:
    tail = log.rows[-max(1, len(log.rows) // 10) :]
    return TrainResult(
        rows=len(found.ids),
        too_long=found.left_out["too_long"],
        empty=found.left_out["empty"],
        tokens=sum(len(example.input_ids) for example in found.examples),
        trained_tokens=sum(example.trained for example in found.examples),
        steps=log.rows[-1]["step"],
        final_loss=sum(row["loss"] for row in tail) / len(tail),
        tokens_per_second=speed(log.rows),
    )


def _nothing(told: object) -> None:
    """Say nothing."""
