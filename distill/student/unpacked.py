"""Lets a 4-bit model on a CPU answer fast: its weights are unpacked once, and packed ones are back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear

MOST_BYTES = 4_000_000_000
"""Weights that take more than this unpacked stay packed."""


@contextmanager
def unpacked(model: Any) -> Iterator[None]:
    """While the block runs, 4-bit layers on the CPU compute with unpacked copies of the same values.

    bitsandbytes unpacks each layer for each token that is drawn: 0.6 s a token and more for SmolLM2-135M's 24 layers on
    two busy cores, against 0.17 s so, adapters included.
    """
    layers = [layer for layer in packed_layers(model) if layer.weight.device.type == "cpu"]
    if sum(4 * module.weight.quant_state.shape.numel() for module in layers) > MOST_BYTES:
        layers = []
    try:
        for module in layers:
            module.forward = _dense(module)
        yield
    finally:
        for module in layers:
            del module.forward


def packed_layers(model: Any) -> list[Any]:
    """The 4-bit layers themselves, not what an adapter wraps them in."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return []
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def _dense(module: Any) -> Any:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(module.weight.data, module.weight.quant_state)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return linear(x.to(weight.dtype), weight, module.bias).to(x.dtype)

    return forward
