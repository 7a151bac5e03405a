"""Estimates a training's work: passes, padding, memory and time; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distill.train.dry_run import StepMeasurement
from distill.train.memory import MICRO_BATCH_TOKENS, Method, Training
from distill.train.options import TrainOptions
from distill.train.packing import PackingPlan, passes


@dataclass(frozen=True, slots=True)
class Work:
    """All passes of a training."""

    steps: int
    passes: int
    tokens: int
    """Over all epochs, without padding."""
    padding: int
    """Tokens of padding, over all epochs."""
    examples: tuple[int, int]
    """Fewest and most in a step."""
    largest: tuple[int, ...]
    """The examples of the largest pass."""

    @property
    def padding_share(self) -> float:
        """Of all tokens that are computed."""
        return self.padding / (self.tokens + self.padding)


def work_of(plan: PackingPlan, lengths: Sequence[int], *, micro_tokens: int, packed: bool) -> Work:
    """What a plan of steps makes of examples of these lengths, in passes of at most `micro_tokens` tokens."""
    count = tokens = computed = 0
    largest: tuple[int, tuple[int, ...]] = (0, ())
    for step in plan.steps:
        for group in passes(step, lengths, tokens=micro_tokens, packed=packed):
            taken = sum(lengths[row] for row in group)
            size = taken if packed else len(group) * max(lengths[row] for row in group)
            count, tokens, computed = count + 1, tokens + taken, computed + size
            largest = max(largest, (size, tuple(group)))
    sizes = [len(step) for step in plan.steps]
    return Work(len(plan.steps), count, tokens, computed - tokens, (min(sizes), max(sizes)), largest[1])


def seconds_of(work: Work, measured: StepMeasurement) -> float:
    """Seconds that all steps take at the measured pace."""
    return (work.tokens + work.padding) / measured.tokens_per_second + work.steps * measured.optimizer_seconds


def training_of(
    options: TrainOptions,
    device: Literal["cpu", "cuda"],
    *,
    layers: int,
    recomputed: int | None = None,
    tokens: int | None = None,
    trained_share: float = 1.0,
    method: Method | None = None,
) -> Training:
    """What the memory's formula asks of a training by these options.

    `tokens`: in its largest pass, by default the most that the device is given; `recomputed`: how many of the `layers`
    are computed again, by default what the options say; `method`: another than the options'.
    """
    again = layers if options.checkpointing in ("selective", "full") else 0
    return Training(
        method=method or options.method,
        r=options.lora.r,
        tokens=tokens or options.micro_batch_tokens or MICRO_BATCH_TOKENS[device],
        recomputed=recomputed if recomputed is not None else again,
        checkpointing="full" if options.checkpointing == "full" else "selective",
        optimizer=options.optimizer,
        device=device,
        width=4 if options.dtype == "fp32" or (device == "cpu" and options.dtype == "auto") else 2,
        trained_share=trained_share,
    )
