"""Activation checkpointing: turns on that activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute(model: Any, how: str, *, layers: int | None = None) -> None:
    """Turn it on in place for the first `layers` layers, or for all; `none` leaves the model as it is.

    `full` keeps each layer's input, `selective` attention's output too.
    """
    if how == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:  # transformers before 5.2x
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    stack = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in stack[layers:] if layers is not None else []:
        layer.gradient_checkpointing = False


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what attention gives: computing that again costs most and its backward pass needs it anyway."""
    kept = "attention" in str(operation)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
