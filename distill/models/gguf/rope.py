"""Llama 3's rotary frequency scaling, converted between transformers' configuration and GGUF."""

from __future__ import annotations

import math
from typing import Any

import torch

_META = {"original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Settings of all of Meta's Llama 3 models; a GGUF file holds only the factors, from which these cannot be derived."""


def parameters_of(config: Any) -> dict[str, Any]:
    """The rotary settings, under the names of transformers' configuration; `rope_theta` is always among them."""
    parameters = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    parameters.setdefault("rope_theta", getattr(config, "rope_theta", 10_000.0))
    return parameters


def head_size(config: Any) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def llama3_factors(config: Any) -> torch.Tensor | None:
    """Divisors of the rotary frequencies, head size / 2 in float32; `None` for another kind of scaling.

    As in transformers' `_compute_llama3_parameters`: the frequencies of short wavelengths stay, those of long ones are
    divided by `factor`, with a gradual change between the two bounds.
    """
    settings = parameters_of(config)
    if settings.get("rope_type") != "llama3":
        return None
    size, context = head_size(config), float(settings["original_max_position_embeddings"])
    low, high, factor = (float(settings[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    factors = []
    for index in range(0, size, 2):
        wavelength = 2 * math.pi * float(settings["rope_theta"]) ** (index / size)
        share = min(1.0, max(0.0, (context / wavelength - low) / (high - low)))
        factors.append(1.0 / (share + (1.0 - share) / factor))
    return torch.tensor(factors, dtype=torch.float32)


def llama3_parameters(factors: torch.Tensor, config: Any) -> dict[str, Any] | None:
    """The settings that give these factors (head size / 2), with Meta's bounds; `None` where there are none."""
    settings = {**parameters_of(config), **_META, "rope_type": "llama3", "factor": float(factors.max())}
    candidate = type(config)(**{**config.to_dict(), "rope_parameters": settings})
    result = llama3_factors(candidate)
    fits = result is not None and result.shape == factors.shape and torch.allclose(result, factors.float(), rtol=1e-4)
    return settings if fits else None
