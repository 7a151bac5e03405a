"""The reference of a preference training: the starting student's log-probabilities of both answers of each pair.

They are computed once, by the trainer's model before its first step, with its adapter as loaded: no second model, and
no adapter switched off, which would be the base. `reference.jsonl` in the run's folder keeps them; a row's key is the
SHA-256 of both halves' token ids and labels and of the weights, so that another student's are never used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.core import console
from distill.core.hashing import json_sha256
from distill.core.jsonl import append, rewrite, whole_rows
from distill.core.weights import fingerprint
from distill.errors import DistillError
from distill.models.chat_template import Example
from distill.train.objectives.cross_entropy import sums
from distill.train.packing import passes

if TYPE_CHECKING:
    from distill.train.options import TrainSettings
    from distill.train.step_guard import GuardedTrainer

NAME = "reference.jsonl"
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.03}
"""Largest relative difference of a stored sum from the same sum computed again, by the dtype of computation."""


@dataclass(frozen=True, slots=True)
class Halves:
    """A pair's two examples."""

    chosen: Example
    rejected: Example

    @property
    def both(self) -> tuple[Example, Example]:
        """Chosen before rejected."""
        return self.chosen, self.rejected

    @property
    def tokens(self) -> int:
        """Of both."""
        return len(self.chosen.input_ids) + len(self.rejected.input_ids)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the reference of a training is kept, and what it belongs to."""

    run: Path
    settings: TrainSettings
    layers: Sequence[int] | None
    """Those of the base that the student keeps."""
    ids: Sequence[str]
    """Of the pairs."""
    say: Callable[[str], None]


def logprobs(trainer: GuardedTrainer, pairs: Sequence[Halves], source: Source) -> Tensor:
    """Summed log-probabilities of the chosen and the rejected answer of each pair (P × 2, float64).

    What reference.jsonl lacks is computed, and written pass by pass, so that a killed run goes on. Raises
    `DistillError` where stored values are not this student's.
    """
    path, start = source.run / NAME, start_of(trainer, source)
    keys = [json_sha256([*_ids(pair.chosen), *_ids(pair.rejected), start]) for pair in pairs]
    with trainer.accelerator.main_process_first():
        rows = list(whole_rows(path))
        stored = {row["key"]: (row["chosen"], row["rejected"]) for row in rows}
        _report(rows, keys, source)
        rewrite(path, [row for row in rows if row["key"] in set(keys)])  # a torn last line goes too
        groups = _groups(trainer, pairs)
        _require_own(trainer, pairs, keys, stored, groups, source)
        missing = [group for group in groups if any(keys[row] not in stored for row in group)]
        with console.progress("reference", len(missing), unit="passes") as bar:
            for number, group in enumerate(missing, start=1):
                values = computed(trainer, [pairs[row] for row in group]).tolist()
                new = dict(zip([keys[row] for row in group], values, strict=True))
                stored |= new
                append(path, [{"key": key, "chosen": one, "rejected": other} for key, (one, other) in new.items()])
                bar.update(number)
    return torch.tensor([stored[key] for key in keys], dtype=torch.float64)


def start_of(trainer: GuardedTrainer, source: Source) -> str:
    """The SHA-256 of what computes the reference: base, kept layers, precision, and the trainable weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(trainer.model.named_parameters()):
        if weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().float().cpu().contiguous().view(-1).numpy().data)
    base = [fingerprint(source.settings.model), source.layers, source.settings.options.method]
    return json_sha256([*base, trainer.args.device.type, bool(trainer.args.bf16), digest.hexdigest()])


def _ids(example: Example) -> tuple[list[int], list[int]]:
    return list(example.input_ids), list(example.labels)


def _groups(trainer: GuardedTrainer, pairs: Sequence[Halves]) -> list[list[int]]:
    sizes = [pair.tokens for pair in pairs]
    return passes(range(len(pairs)), sizes, tokens=trainer.micro_tokens, packed=bool(trainer.padding_free))


def computed(trainer: GuardedTrainer, pairs: Sequence[Halves]) -> Tensor:
    """Summed log-probabilities of both answers of pairs (P × 2, float64) by the trainer's model as it stands."""
    from distill.train.evaluation import aside

    found = torch.zeros(len(pairs), 2, dtype=torch.float64)
    with torch.no_grad(), aside(trainer.model), trainer.accelerator.autocast():
        for group in _groups(trainer, pairs):
            examples = [each for row in group for each in pairs[row].both]
            nats = trainer.token_losses(trainer._prepare_inputs(trainer.collated(examples)))
            tokens = torch.tensor([each.trained for each in examples], device=nats.device)
            found[group] = -sums(nats.double(), tokens).view(-1, 2).cpu()
    return found


def _report(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], source: Source) -> None:
    known = sum(row["key"] in set(keys) for row in rows)
    if rows and known < len(rows):
        source.say(f"{NAME}: {len(rows) - known} rows are of another student or of other answers, and not used")


def _require_own(
    trainer: GuardedTrainer,
    pairs: Sequence[Halves],
    keys: Sequence[str],
    stored: Mapping[str, Sequence[float]],
    groups: Sequence[Sequence[int]],
    source: Source,
) -> None:
    """Compute one stored pass again. Raises `DistillError` where it differs: the reference is not the student."""
    known = next((group for group in groups if all(keys[row] in stored for row in group)), None)
    if known is None:
        return
    expected = torch.tensor([stored[keys[row]] for row in known], dtype=torch.float64)
    again = computed(trainer, [pairs[row] for row in known])
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32
    far = ((again - expected).abs() > TOLERANCE[dtype] * expected.abs().clamp_min(1.0)).any(1)
    if far.any():
        place = int(far.nonzero()[0])
        raise DistillError(
            f"{source.run / NAME}: the reference is not the starting student: of {source.ids[known[place]]} it has "
            f"{expected[place, 0]:.2f} and {expected[place, 1]:.2f} nats, and the student {again[place, 0]:.2f} and "
            f"{again[place, 1]:.2f}; remove that file, and it is computed again"
        )


def per_token(logprobs: Tensor, pairs: Sequence[Halves]) -> Tensor:
    """Nats per trained token of both answers (P × 2)."""
    lengths = torch.tensor([[each.trained for each in pair.both] for pair in pairs], dtype=torch.float64)
    return logprobs / lengths
