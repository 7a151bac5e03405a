"""Assigns examples to optimizer steps, and a step to forward passes; loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from random import Random
from typing import Literal, TypeAlias

Layout: TypeAlias = Literal["packed", "padded", "alone"]
"""Sessions of a pass: end to end, padded to one length, or one session a pass."""

AIMED_STEPS = 36
"""Optimizer steps that a small set is divided into; a student learns little from a few large steps."""
BATCH_TOKENS = (128, 16_384)
"""Least and most tokens per step by default. The field's usual 128 rows are about 20,000."""
MEGABATCH_STEPS = 50
"""Steps whose examples are sorted by length together when rows are grouped."""


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """Assignment of examples to optimizer steps; independent of forward passes."""

    steps: tuple[tuple[int, ...], ...]
    """Indices of examples, over all epochs; every step has at least one."""
    epochs: float

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return self.epochs * step / len(self.steps)


def plan(
    lengths: Sequence[int],
    *,
    epochs: float,
    batch_tokens: int | None = None,
    batch_rows: int | None = None,
    seed: int,
    grouped: bool = False,
) -> PackingPlan:
    """Shuffle examples of these lengths (in tokens) and divide them into steps, independently for each epoch.

    A step has about `batch_tokens` tokens, or exactly `batch_rows` examples except an epoch's last; by default, the run
    has about `AIMED_STEPS` steps. `grouped`: the examples of a step have similar lengths (those of 50 steps are sorted
    together), which saves padding and makes steps less alike. An example of length 0 is left out. The result depends on
    these arguments only.
    """
    aimed = batch_tokens or min(max(math.ceil(sum(lengths) * epochs / AIMED_STEPS), BATCH_TOKENS[0]), BATCH_TOKENS[1])
    steps: list[tuple[int, ...]] = []
    for epoch in range(math.ceil(epochs)):
        random = Random(f"{seed}:{epoch}")
        places = [place for place, length in enumerate(lengths) if length]
        order = random.sample(places, len(places))
        if grouped:
            size = MEGABATCH_STEPS * (batch_rows or max(1, round(aimed * len(lengths) / sum(lengths))))
            order = _sorted_in_parts(order, lengths, size)
        parts = _by_rows(order, batch_rows) if batch_rows else _by_tokens(order, lengths, aimed)
        if grouped:
            random.shuffle(parts)
        steps += parts[: max(1, round(len(parts) * min(1.0, epochs - epoch)))]
    return PackingPlan(tuple(steps), epochs)


def _sorted_in_parts(order: Sequence[int], lengths: Sequence[int], size: int) -> list[int]:
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [index for part in parts for index in sorted(part, key=lambda index: -lengths[index])]


def _by_rows(order: Sequence[int], rows: int) -> list[tuple[int, ...]]:
    return [tuple(order[start : start + rows]) for start in range(0, len(order), rows)]


def _by_tokens(order: Sequence[int], lengths: Sequence[int], aimed: int) -> list[tuple[int, ...]]:
    """Steps of nearly equal size: with all examples end to end, an example belongs where its middle falls."""
    total = sum(lengths)
    count = max(1, round(total / aimed))
    steps: list[list[int]] = [[] for _ in range(count)]
    for index, end in zip(order, accumulate(lengths[index] for index in order), strict=True):
        middle = end - lengths[index] / 2
        steps[min(count - 1, int(middle * count / total))].append(index)
    return [tuple(step) for step in steps if step]


def passes(
    rows: Sequence[int], lengths: Sequence[int] | Mapping[int, int], *, tokens: int, packed: bool, processes: int = 1
) -> list[list[int]]:
    """Divide the examples of a step into forward passes of at most `tokens` tokens; a longer example has its own pass.

    `packed`: end to end, in as few passes as possible, evenly filled; otherwise padded to the longest of a pass, with
    examples of similar length together. The largest come first, so that an out-of-memory error comes at once or never.
    The number of passes is a multiple of `processes`; some are empty where there are too few examples.
    """
    order = sorted(rows, key=lambda row: -lengths[row])
    groups = _packed(order, lengths, tokens) if packed else _padded(order, lengths, tokens)
    while len(groups) % processes:
        groups.sort(key=lambda group: -len(group))
        largest = groups.pop(0)
        half = math.ceil(len(largest) / 2)
        groups += [largest[:half], largest[half:]]
    return groups


def _padded(order: Sequence[int], lengths: Sequence[int] | Mapping[int, int], tokens: int) -> list[list[int]]:
    groups: list[list[int]] = []
    rest = iter(order)
    while first := list(islice(rest, 1)):
        groups.append(first + list(islice(rest, max(0, tokens // lengths[first[0]] - 1))))
    return groups


def _packed(order: Sequence[int], lengths: Sequence[int] | Mapping[int, int], tokens: int) -> list[list[int]]:
    """As few rows as best fit needs, evenly filled where possible, as attention's cost is quadratic in length."""
    alone = [[row] for row in order if lengths[row] >= tokens]
    fitting = order[len(alone) :]
    groups = _best_fit(fitting, lengths, tokens)
    even: list[list[int]] = [[] for _ in groups]
    filled = [0] * len(groups)
    for row in fitting:
        emptiest = filled.index(min(filled))
        even[emptiest].append(row)
        filled[emptiest] += lengths[row]
    return alone + (even if max(filled, default=0) <= tokens else groups)


def _best_fit(order: Sequence[int], lengths: Sequence[int] | Mapping[int, int], limit: int) -> list[list[int]]:
    """Best fit decreasing (Johnson, 1974): each example into the fullest row with room for it, else into a new row."""
    groups: list[list[int]] = []
    room: list[int] = []
    for row in order:
        fitting = [(space, at) for at, space in enumerate(room) if space >= lengths[row]]
        at = min(fitting)[1] if fitting else len(groups)
        if not fitting:
            groups.append([])
            room.append(limit)
        groups[at].append(row)
        room[at] -= lengths[row]
    return groups
