"""4-bit loading with bitsandbytes; dequantizes weights while generating on a CPU, and restores them on exit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from distill.core.files import read_json
from distill.errors import ModelError
from distill.models.trial import agree, random_rows


def require_plain(folder: Path) -> None:
    """Raise `ModelError` for a base whose weights are stored quantised.

    They cannot be trained, and an adapter could not be served here on the same weights.
    """
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and (settings := config.get("quantization_config")):
        raise ModelError(
            f"{folder} holds weights quantised by {settings.get('quant_method', 'another tool')}; train on the "
            "unquantised model (method: qlora quantises it itself)"
        )


def require_quantised(model: Any) -> None:
    """Raise `ModelError` where bitsandbytes has quantised none of the layers of a model that was to be in 4 bits."""
    if not packed_layers(model):
        layers = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
        kinds = sorted({type(module).__name__ for module in layers} - {"Linear"})
        raise ModelError(
            f"none of the weights of a {model.config.model_type} model can be held in 4 bits here"
            f"{f' (its layers are {kinds[0]})' if kinds else ''}; use train.method: lora"
        )


def dequantised(model: Any) -> Any:
    """A 4-bit model with whole weights, in layers of the classes that it is saved with.

    bitsandbytes keeps GPT-2's transposed layers (`Conv1D`) as linear ones, and transformers leaves them so.
    """
    model = model.dequantize()
    model.is_loaded_in_4bit = False  # transformers leaves it set
    with torch.device("meta"):
        own = type(model)(copy.deepcopy(model.config))
    for name, one in own.named_modules():
        if isinstance(one, Conv1D):
            dense = model.get_submodule(name)
            layer = Conv1D(dense.out_features, dense.in_features)
            layer.weight = torch.nn.Parameter(dense.weight.detach().t().contiguous(), requires_grad=False)
            layer.bias = dense.bias
            model.set_submodule(name, layer)
    return model


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _settle_quantised(model: Any, dtype: torch.dtype) -> None:
    """Convert everything but the NF4 codes to `dtype`, and switch off bitsandbytes' packed CPU kernel.

    On CPUs with AVX512-BF16 an evaluation repacks each Linear4bit for a kernel without autograd; later gradients were
    wrong: layer-0 cosine 0.10 to the true ones, loss 3.7 -> 5.3 instead of -> 1.8 (bitsandbytes 0.50.2).
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            state.dtype = dtype  # of the dequantised weights
            module.support_avx512bf16_for_cpu = False
    for weight in model.parameters():
        if weight.is_floating_point() and weight.dtype != dtype:
            weight.data = weight.data.to(dtype)
    model.config.dtype = dtype


MOST_BYTES = 4_000_000_000
"""Dequantized size above which weights stay in 4 bits."""


@contextmanager
def unpacked(model: Any) -> Iterator[None]:
    """While the block runs, 4-bit layers on the CPU compute with dequantized copies of their weights.

    bitsandbytes dequantizes each layer for each token: at least 0.6 s per token for 24 layers of SmolLM2-135M on two
    busy cores, against 0.17 s here, adapters included.
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
    """The 4-bit linear layers, without the adapters that wrap them."""
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


_TRIAL_ROWS = 4


def require_right_gradients(model: Any) -> None:
    """Raise `ModelError` where the first 4-bit layer's gradient after an evaluation is not that of its plain weights.

    bitsandbytes 0.50 repacks such layers in evaluation on CPUs with AVX512-BF16, for a kernel without a gradient:
    training would go on with wrong updates. `load_causal` switches that off; this check is for the next such fault and
    takes milliseconds on a CPU.
    """
    layers = packed_layers(model)
    if not layers:
        return
    layer, training = layers[0], layers[0].training
    rows = random_rows((_TRIAL_ROWS, layer.in_features), layer.weight.quant_state.dtype, layer.weight.device)
    with torch.no_grad():
        layer.eval()(rows)
    layer.train()
    is_right = agree(_dense(layer), layer, [rows])
    layer.train(training)
    if not is_right:
        raise ModelError(
            "4-bit layers have wrong gradients after an evaluation on this machine, a fault of bitsandbytes; use "
            "train.method: lora, or another version of it"
        )
