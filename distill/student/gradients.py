"""Makes sure, in a moment, that 4-bit layers still have right gradients after an evaluation."""

from __future__ import annotations

from typing import Any

import torch

from distill.errors import ModelError
from distill.student.unpacked import packed_layers

ROWS = 4
TOLERANCE = 1e-2
"""Of the true gradient's length. Rounding differs by 1e-6 in float32 and 4e-3 in bfloat16; the known fault by 1."""


def require_right_gradients(model: Any) -> None:
    """Raise `ModelError` where the first 4-bit layer's gradient after an evaluation is not that of its plain weights.

    bitsandbytes 0.50 repacks such layers in evaluation on CPUs with AVX512-BF16, for a kernel that has no gradient:
    training would go on, and learn wrong. The layers of a model of ours do not take part (`models.load_causal`); this
    is for the next such fault. It takes milliseconds on a CPU.
    """
    layers = packed_layers(model)
    if not layers:
        return
    found, true = _gradients(layers[0])
    error = float((found - true).norm() / true.norm())
    if not error <= TOLERANCE:
        raise ModelError(
            f"4-bit layers have wrong gradients after an evaluation on this machine (off by {error:.0%}), a fault of "
            "bitsandbytes; use train.method: lora, or another version of it"
        )


def _gradients(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the sum of squared outputs, in the inputs: through the layer after an evaluation, and by plain weights."""
    from bitsandbytes.functional import dequantize_4bit

    training = layer.training
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, layer.in_features, generator=generator).to(
        layer.weight.device, layer.weight.quant_state.dtype
    )
    with torch.no_grad():
        layer.eval()(inputs)
    layer.train()
    found = _gradient(layer, inputs)
    layer.train(training)
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(inputs.dtype)
    return found, _gradient(lambda x: torch.nn.functional.linear(x, weight, layer.bias), inputs)


def _gradient(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    inputs = inputs.clone().requires_grad_()
    outputs = layer(inputs)
    (found,) = torch.autograd.grad(outputs.float().square().sum(), inputs, allow_unused=True)
    return (found if found is not None else torch.zeros_like(inputs)).float()
