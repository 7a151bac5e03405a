"""What an objective knows of trained tokens besides their labels, as the ways of the loss take it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class TokenTargets(Protocol):
    """Targets of N trained tokens, which give each its loss in nats from the student's logits."""

    def __getitem__(self, part: slice) -> TokenTargets:
        """The targets of a slice of the tokens."""
        ...

    def to(self, device: torch.device) -> TokenTargets:
        """The targets on a device."""
        ...

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each token (N) from logits of N × V in float32; differentiable."""
        ...

    def tile(self, logs: Tensor, labels: Tensor, *, needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Losses (n) from log-probabilities of n × V, and their gradient by the logits, which may take their memory."""
        ...
