"""NEFTune: noise on the embeddings while training, by the length of each session also where several are packed."""

from __future__ import annotations

from typing import Any

import torch


class Noise:
    """Adds uniform noise of at most alpha / √(L x d) to a session of L tokens in d dimensions.

    Jain et al., 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning", algorithm 1. What transformers has
    goes by the length of the row, which in packed rows is that of several sessions.
    """

    def __init__(self, model: Any, alpha: float) -> None:
        self._alpha = alpha
        self.lengths = torch.empty(0)
        """B × T: at each position, the tokens of the session that it belongs to; set before each forward pass."""
        model.get_input_embeddings().register_forward_hook(self._add)

    def _add(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        bound = self._alpha / (self.lengths.to(output.device) * output.size(-1)).sqrt()
        noise = torch.empty_like(output, dtype=torch.float32).uniform_(-1, 1) * bound.unsqueeze(-1)
        return output + noise.to(output.dtype)


def token_lengths(batch: dict[str, Any]) -> torch.Tensor:
    """B × T: the tokens of the session at each position of a padded or a packed batch."""
    if "attention_mask" in batch:
        counts: torch.Tensor = batch["attention_mask"].sum(1, keepdim=True)
        return counts.expand_as(batch["attention_mask"])
    document = (batch["position_ids"][0] == 0).cumsum(0) - 1
    return document.bincount()[document].unsqueeze(0)
