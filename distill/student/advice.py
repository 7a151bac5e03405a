"""What would make a training better, by its plan and what one pass of it was measured to take."""

from __future__ import annotations

from collections.abc import Iterator

from distill.student.examples import Examples
from distill.student.layout import AIMED_STEPS
from distill.student.options import TrainOptions
from distill.student.rehearsal import Measured
from distill.student.work import Work

PADDING_SHARE = 0.15
"""Padding above this share is worth a word."""
FEW_STEPS = 10
"""With fewer steps a student learns little, whatever they are made of."""
SPARE = 0.85
"""Of the memory that there is, what a pass may be advised to take."""


def of_rows(found: Examples, work: Work, options: TrainOptions) -> Iterator[str]:
    """What the rows and the options alone say."""
    yield from _of_length(found, options)
    if work.padding_share > PADDING_SHARE:
        yield f"train.packing: best_fit would spare the padding, {work.padding_share:.0%} of what is computed now"
    if work.steps < FEW_STEPS:
        tokens = max(1, work.tokens // AIMED_STEPS)
        yield f"only {work.steps} steps: train.batch_tokens: {tokens} would make about {AIMED_STEPS}"


def _of_length(found: Examples, options: TrainOptions) -> Iterator[str]:
    if not found.too_long:
        return
    lengths = sorted([*found.lengths(), *(tokens for tokens, _ in found.too_long)])
    most = lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))]
    some = f", {most} 99% of them" if options.max_length < most < lengths[-1] else ""
    yield f"train.max_length: {lengths[-1]} would keep all sessions{some}"
    several = sum(pairs > 1 for _, pairs in found.too_long)
    if several and options.over_length == "drop":
        yield f"train.over_length: split would keep pairs of {several} sessions that are left out for their length"


def of_memory(
    work: Work, options: TrainOptions, measured: Measured, *, whole_bytes: float | None, gpu: bool
) -> Iterator[str]:
    """What the measured pass says; `whole_bytes`: what the same training takes with the base in 16 bits, by formula."""
    asked = max(measured.tokens, 1)
    if measured.micro_tokens < asked:
        yield f"train.micro_batch_tokens: {measured.micro_tokens} is what memory holds; {asked} was too much"
    elif measured.peak_bytes > SPARE * measured.room_bytes:
        yield f"memory is almost full: train.micro_batch_tokens: {asked // 2} would be safer"
    elif (
        gpu and options.micro_batch_tokens and (fitting := _fitting(measured)) >= 2 * asked and work.passes > work.steps
    ):
        yield f"train.micro_batch_tokens: {fitting} fits, and larger passes keep a GPU busier"
    if gpu and options.method == "qlora" and whole_bytes is not None and whole_bytes < SPARE * measured.room_bytes:
        yield (
            f"train.method: lora needs about {whole_bytes / 1e9:.1f} GB here, which fits: with the base in 16 bits it "
            "is faster than QLoRA, which unpacks 4-bit weights in every pass"
        )


def _fitting(measured: Measured) -> int:
    """Tokens of a pass that the memory would hold, a multiple of 1,024; its need grows with the tokens."""
    each = (measured.peak_bytes - measured.before_bytes) / measured.tokens
    return int((SPARE * measured.room_bytes - measured.before_bytes) / max(each, 1) // 1024 * 1024)
