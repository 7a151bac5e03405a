"""The training rows against the model: tokens without an embedding or an untrained one, and positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from distill.errors import ModelError, some_of
from distill.models.chat_template import Example
from distill.models.padding import context_tokens

OFFSETS = 16
"""Most rows that a table of positions has beyond the context: OPT's has 2."""
SAMPLED = 1000
"""Embeddings of which the usual norm and the mean are taken."""
UNTRAINED = 0.1
"""Share of the usual norm below which an embedding, or its distance from the mean, is that of a token never trained.

Tokens that were reserved before pre-training are near zero, and those that transformers added later near the mean."""


def require_embeddings(model: Any, ids: Sequence[str], examples: Sequence[Example], tokenizer: Any) -> None:
    """Raise `ModelError` where an example has a token that was added to the tokenizer and not to the model."""
    rows = model.get_input_embeddings().weight.shape[0]
    for id_, one in zip(ids, examples, strict=True):
        if (highest := max(one.input_ids)) >= rows:
            token = tokenizer.convert_ids_to_tokens(highest)
            raise ModelError(
                f"session {id_} holds the token {token!r} (number {highest}), and the model has embeddings for {rows}; "
                "they are never resized here, for the output head may be tied to them: take the tokenizer that "
                "belongs to the model, or another template"
            )


def require_positions(model: Any, ids: Sequence[str], examples: Sequence[Example]) -> None:
    """Raise `ModelError` where an example is longer than a table of positions in the model."""
    context = context_tokens(model)
    longest = max(range(len(examples)), key=lambda row: len(examples[row].input_ids))
    tokens = len(examples[longest].input_ids)
    if tokens > context and _has_position_table(model, context):
        raise ModelError(
            f"session {ids[longest]} has {tokens} tokens, and the model has {context} positions; set train.max_length: "
            f"{context} (train.over_length says what becomes of longer sessions)"
        )


def _has_position_table(model: Any, context: int) -> bool:
    sizes = range(context, context + OFFSETS + 1)
    tokens = model.get_input_embeddings()
    tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding) and module is not tokens)
    by_buffer = any(size in sizes for buffer in model.buffers() if buffer.dim() > 1 for size in buffer.shape)
    return by_buffer or any(module.num_embeddings in sizes for module in tables)


def findings(model: Any, ids: Sequence[str], examples: Sequence[Example], tokenizer: Any) -> Iterator[str]:
    """What is odd about the rows and is trained on all the same, each as a clause."""
    context = context_tokens(model)
    if over := [id_ for id_, one in zip(ids, examples, strict=True) if len(one.input_ids) > context]:
        yield (
            f"{len(over)} of {len(ids)} rows (such as {over[0]}) are longer than the {context} positions that the "
            "model was made for"
        )
    if tokens := _untrained_tokens(model, examples, tokenizer):
        yield (
            f"the rows hold {some_of(tokens, 5)}, whose embeddings look untrained and stay so under an adapter (take "
            "another template, or method: full)"
        )


def _untrained_tokens(model: Any, examples: Sequence[Example], tokenizer: Any) -> list[str]:
    """Added tokens in the rows whose embedding is frozen, and near zero or near the mean of all."""
    weight = model.get_input_embeddings().weight
    added = sorted(set(tokenizer.added_tokens_decoder) & {id_ for one in examples for id_ in one.input_ids})
    if weight.requires_grad or not added:
        return []
    with torch.no_grad():
        usual = weight[:: max(1, len(weight) // SAMPLED)].float()
        rows, mean, norm = weight[added].float(), usual.mean(0), usual.norm(dim=1).median()
        distance = torch.minimum(rows.norm(dim=1), (rows - mean).norm(dim=1))
        places = (distance < UNTRAINED * norm).nonzero().flatten().tolist()
    names: list[str] = tokenizer.convert_ids_to_tokens([added[place] for place in places])
    return names
