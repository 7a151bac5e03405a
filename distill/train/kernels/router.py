"""The load-balancing loss of a mixture of experts, once a step whatever the number of passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from distill.models.pruning import backbone_of


class RouterLoss:
    """Collects the routers' logits of a forward pass, of any family whose backbone returns them.

    The loss is that of Fedus et al., 2022, "Switch Transformers", equations 4 to 6, over the tokens of a pass, times
    the configuration's own `router_aux_loss_coef`. The trainer weights it by the pass's share of the step's tokens.
    """

    def __init__(self, causal: Any, weight: float) -> None:
        self._weight = weight
        self._top = int(getattr(causal.config.get_text_config(), "num_experts_per_tok", 0) or 1)
        self._is_asked = False
        self._logits: tuple[torch.Tensor, ...] = ()
        backbone_of(causal).register_forward_pre_hook(self._ask, with_kwargs=True)
        backbone_of(causal).register_forward_hook(self._keep)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Within the block, forward passes return their routers' logits."""
        self._is_asked = True
        try:
            yield
        finally:
            self._is_asked = False

    def take(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """The weighted loss of the last pass, a scalar; None where it had no router.

        `mask` (B × T) is 1 on tokens and 0 on padding; None for a pass without padding.
        """
        logits, self._logits = self._logits, ()
        if not logits:
            return None
        rows = tuple(one.reshape(-1, one.shape[-1]) for one in logits)
        loss: torch.Tensor = load_balancing_loss_func(rows, rows[0].shape[-1], self._top, mask)
        return self._weight * loss

    def _ask(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        return (args, {**kwargs, "output_router_logits": True}) if self._is_asked else None

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        if self._is_asked:
            self._logits = tuple(one for one in getattr(output, "router_logits", None) or () if one is not None)


def weight_of(config: Any) -> float:
    """The weight of the router's loss by a model's configuration; 0 for a model without experts."""
    text = config.get_text_config()
    has_router = hasattr(text, "output_router_logits")
    return float(getattr(text, "router_aux_loss_coef", 0.0) or 0.0) if has_router else 0.0
