"""Groups token lists into padded batches that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch


def by_length(lengths: Sequence[int], *, rows: int, tokens: int) -> Iterator[list[int]]:
    """Indices in groups of at most `rows` rows and, padded, `tokens` tokens; a longer row is a group by itself.

    The longest rows come first, so that an out-of-memory error comes at once or never.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        fitting = max(1, min(rows, tokens // max(1, lengths[order[start]])))
        yield order[start : start + fitting]
        start += fitting


def padded(rows: Sequence[Sequence[int]], *, on_left: bool, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask (1 on tokens, 0 on padding), both B × T."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if on_left else slice(len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids.to(device), mask.to(device)


def context_tokens(model: Any) -> int:
    """Tokens of the model's context."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
