"""Fits a step into memory by formula: how many tokens a forward pass has, and how many layers are computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from distill.student.memory import FULLEST, Checkpointing, Shape, Training, estimate, lay_out, shape_in

if TYPE_CHECKING:
    from distill.student.options import TrainOptions

MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
"""Tokens in one forward pass where memory does not decide: on a CPU, longer ones lose more to attention than they
save on unpacking 4-bit weights."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How the passes of a step are computed."""

    tokens: int
    """Most in a forward pass."""
    checkpointing: Checkpointing = "none"
    layers: int | None = None
    """Whose activations are computed again; all when None."""


def fit(
    base: Path,
    kept: Sequence[int] | None,
    options: TrainOptions,
    *,
    longest: int,
    width: int,
    room: float | None,
) -> Fit:
    """The options' own layout where they say it; else the fastest that `room` bytes of a GPU hold by formula.

    `kept` are the layers of the base that the student keeps, `longest` the tokens of the longest session, `width` the
    bytes of a number that is computed with; `room` is None on a CPU, where nothing is computed again.
    """
    default = options.micro_batch_tokens or MICRO_BATCH_TOKENS["cpu" if room is None else "cuda"]
    if options.checkpointing != "auto":
        return Fit(default, options.checkpointing)
    if room is None:
        return Fit(default)
    shape = shape_in(base, layers=len(kept) if kept is not None else None)
    if shape is None:
        return Fit(default, "selective")
    training = Training(options.method, options.lora.r, optimizer=options.optimizer, device="cuda", width=width)
    if options.micro_batch_tokens is not None:
        return _with_tokens(shape, replace(training, tokens=max(options.micro_batch_tokens, longest)), room, default)
    found = lay_out(shape, training, card_bytes=room, longest=longest)
    return _fit(found.tokens, found.recomputed)


def _with_tokens(shape: Shape, training: Training, room: float, tokens: int) -> Fit:
    """As few layers computed again as the room asks for."""
    tried = (replace(training, recomputed=again) for again in range(shape.layers))
    fitting = (one.recomputed for one in tried if estimate(shape, one).total <= FULLEST * room)
    return _fit(tokens, next(fitting, shape.layers))


def _fit(tokens: int, layers: int) -> Fit:
    return Fit(tokens, "selective" if layers else "none", layers)
