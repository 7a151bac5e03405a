"""How examples are laid into forward passes and optimizer steps; loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

AIMED_STEPS = 36
"""Optimizer steps that a small set is divided into; with few large ones it learns little."""
BATCH_TOKENS = (128, 16_384)
"""Least and most tokens a step where the recipe says nothing. The field's usual 128 rows are about 20,000."""
MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
"""Tokens in one forward pass; in longer ones attention costs more than is saved on unpacking 4-bit weights."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How examples are laid into optimizer steps."""

    pack: int
    """Tokens in a row that several examples are packed into; at least the longest example."""
    accumulation: int
    """Rows in one step."""


def lay_out(lengths: Sequence[int], *, epochs: float, batch_tokens: int | None, micro: int) -> Layout:
    """Lay examples of these lengths (in tokens) into steps of about `batch_tokens`, at most `micro` a forward pass."""
    least, most = BATCH_TOKENS
    aimed = batch_tokens or min(max(math.ceil(sum(lengths) * epochs / AIMED_STEPS), least), most)
    longest = max(lengths)
    accumulation = math.ceil(aimed / max(micro, longest))
    return Layout(pack=max(math.ceil(aimed / accumulation), longest), accumulation=accumulation)
