"""A tiny random model whose next-token probabilities are far apart, so that rounding moves no draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.tiny import save_tiny_model


def load_loud(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer; the output layer is untied from the input and 25 times as strong."""
    import torch

    from distill.models import loading

    save_tiny_model(folder, layers=2)
    model = loading.load_causal(folder, device="cpu")
    torch.manual_seed(1)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) / 2)
    return model, loading.load_tokenizer(folder)
