"""Activation checkpointing: which activations are computed again instead of kept, chosen by memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

KEPT_SHARE = 0.8
"""Of a GPU's free memory, what activations may take by formula: the rest is for the head, gradients and fragments."""


def chosen(asked: str, model: Any, tokens: int) -> str:
    """`none`, `selective` or `full` for forward passes of so many tokens; `auto` is decided by the free memory."""
    device = next(model.parameters()).device
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "none"
    room = KEPT_SHARE * torch.cuda.mem_get_info(device)[0]
    sizes = activation_bytes(model.config.get_text_config(), tokens)
    return next((how for how, size in sizes.items() if size <= room), "full")


def activation_bytes(config: Any, tokens: int) -> dict[str, float]:
    """Bytes of what 16-bit training keeps for the backward pass, by method.

    `none`: of each layer about 16 tensors as wide as the hidden size and 5 as wide as the feed-forward's, inputs of
    the adapters among them. `full`: each layer's input, and one whole layer. `selective`: attention's outputs too.
    """
    layer = 2 * tokens * (16 * config.hidden_size + 5 * config.intermediate_size)
    kept = 2 * tokens * config.hidden_size * config.num_hidden_layers
    return {"none": config.num_hidden_layers * layer, "selective": 2 * kept + layer, "full": kept + layer}


def recompute(model: Any, how: str) -> None:
    """Turn it on, in place; `none` leaves the model as it is."""
    if how == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:  # transformers before 5.2x
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what attention gives: computing that again costs most and its backward pass needs it anyway."""
    kept = "attention" in str(operation)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
