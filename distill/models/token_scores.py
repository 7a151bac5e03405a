"""Log-probabilities of tokens under the model itself: before penalties, temperature and top_p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import DynamicCache

LEAST = -9999.0
"""Stands for a log-probability of minus infinity, which JSON cannot hold, as in OpenAI's API."""
CHUNK = 256
"""Tokens of a prompt scored at once: 50 MB of float32 logits with a vocabulary of 49,152."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The log-probability of a token, in nats, and the most probable tokens at its place."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """Ids and log-probabilities, in falling order."""


def scores(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenScore]:
    """The scores of one token for each row of `logits` (B × V), with the `top` best of the row."""
    logs = torch.log_softmax(logits.float(), dim=-1).clamp(min=LEAST)
    chosen = logs.gather(-1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
    best, ids = (part.tolist() for part in logs.topk(top, dim=-1))
    rows = zip(chosen, ids, best, strict=True)
    return [TokenScore(logprob, tuple(zip(ids_, best_, strict=True))) for logprob, ids_, best_ in rows]


def prompt_scores(model: Any, ids: Sequence[int], tokenizer: Any, top: int) -> list[TokenScore | None]:
    """A score for each token of a prompt, given those before it; the first has none."""
    found: list[TokenScore | None] = [None]
    cache = DynamicCache(config=model.config)
    for start in range(0, len(ids) - 1, CHUNK):
        part = list(ids[start : min(start + CHUNK, len(ids) - 1)])
        inputs = torch.tensor([part], device=model.device)
        logits = model(input_ids=inputs, past_key_values=cache, use_cache=True).logits[0]
        found += scores(only_named(logits, tokenizer), ids[start + 1 : start + 1 + len(part)], top)
    return found


def only_named(logits: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Logits (… × V, changed in place) in which ids that are no token are never drawn: an answer would miss a piece.

    A model may have more ids than its tokenizer, behind its last or between; all count without a tokenizer.
    """
    if tokenizer is not None and (unnamed := _unnamed_ids(tokenizer, logits.shape[-1])):
        logits[..., unnamed] = torch.finfo(logits.dtype).min
    return logits


@lru_cache(maxsize=4)
def token_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of all tokens."""
    return frozenset(tokenizer.get_vocab().values())


@lru_cache(maxsize=4)
def _unnamed_ids(tokenizer: Any, rows: int) -> list[int]:
    return sorted(set(range(rows)) - token_ids(tokenizer))
