"""The loss of each trained token in one of three ways, of which the model's own forward is always right.

`kernel` and `fused` take hidden states and output head apart, which is right for a head that is one linear layer (and,
for `fused`, scaled under a name that TRL knows): `self_check` compares them with `own` before training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import MethodType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from distill.models.chat_template import IGNORED
from distill.models.pruning import backbone_of
from distill.models.trial import agree, random_rows
from distill.train.kernels import autograd
from distill.train.kernels.targets import TokenTargets

Inputs: TypeAlias = "dict[str, Any]"
"""Arguments of the model's forward."""
HEAD_ROWS = 2048
"""Trained tokens whose logits are kept where the output head is trainable."""
TRIED_ROWS = 32


def install(causal: Any) -> None:
    """Give the forward of a causal model the option `token_losses`, the name of a way.

    It then returns nats of each trained token (N, of the labels B × T that are not ignored, the first column left out),
    or those that the `targets` of the N tokens give.
    As a part of forward, wrappers around the model (DDP, accelerate) see it.
    """
    own = causal.forward

    @wraps(own)  # `generate` reads its signature
    def forward(
        self: Any, *args: Any, token_losses: str | None = None, targets: TokenTargets | None = None, **inputs: Any
    ) -> Any:
        return own(*args, **inputs) if token_losses is None else WAYS[token_losses](self, own, inputs, targets)

    causal.forward = MethodType(forward, causal)


def _by_kernel(causal: Any, own: Callable[..., Any], inputs: Inputs, targets: TokenTargets | None) -> Tensor:
    labels = inputs.pop("labels")[:, 1:]
    hidden = backbone_of(causal)(**inputs, use_cache=False).last_hidden_state[:, :-1]
    trained = labels != IGNORED
    return head_losses(hidden[trained], causal.get_output_embeddings(), labels[trained], targets)


def _by_fused_head(
    causal: Any, own: Callable[..., Any], inputs: dict[str, Any], targets: TokenTargets | None
) -> Tensor:
    assert targets is None, "the fused head keeps the label's log-probability only"
    trained = inputs["labels"][:, 1:] != IGNORED
    losses: Tensor = -own(**inputs, use_cache=False, fused_lm_head=True).log_probs[trained].float()
    return losses


def _by_own_forward(
    causal: Any, own: Callable[..., Any], inputs: dict[str, Any], targets: TokenTargets | None
) -> Tensor:
    """What the model adds to the cross entropy of its logits, if anything, is divided evenly among the tokens."""
    output = own(**inputs, use_cache=False)
    labels = inputs["labels"][:, 1:]
    trained = labels != IGNORED
    logits = output.logits[:, :-1][trained].float()
    losses = cross_entropy(logits, labels[trained], reduction="none")
    more = output.loss - losses.mean() if output.loss is not None and len(losses) else 0.0
    return (losses if targets is None else targets.from_logits(logits, labels[trained])) + more


WAYS: Mapping[str, Callable[[Any, Callable[..., Any], Inputs, TokenTargets | None], Tensor]] = {
    "kernel": _by_kernel,
    "fused": _by_fused_head,
    "own": _by_own_forward,
}
"""From the fastest to the model's own."""


def has_linear_head(causal: Any) -> bool:
    """Whether the kernel can take the output head: a linear layer without bias, frozen or on a CPU."""
    head = causal.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return False
    return not head.weight.requires_grad or head.weight.device.type == "cpu"


def kernel_agrees(causal: Any) -> bool:
    """Whether the kernel has the losses and gradients of torch's cross entropy, on random rows."""
    head = causal.get_output_embeddings()
    vocabulary, width = head.weight.shape
    labels = torch.arange(TRIED_ROWS, device=head.weight.device) % vocabulary
    hidden = random_rows((TRIED_ROWS, width), head.weight.dtype, head.weight.device)
    return agree(
        lambda rows: cross_entropy(head(rows).float(), labels, reduction="none"),
        lambda rows: head_losses(rows, head, labels),
        [hidden],
        [head.weight] if head.weight.requires_grad else [],
    )


def head_losses(hidden: Tensor, head: Any, labels: Tensor, targets: TokenTargets | None = None) -> Tensor:
    """Nats of each of N labels (N), on hidden states of N × H; with targets, those that they give.

    With a trainable head, at most `HEAD_ROWS` rows of logits exist at once; more are recomputed in the backward pass.
    """
    if not head.weight.requires_grad:
        return autograd.token_losses(hidden, head.weight, labels, targets)
    if len(labels) <= HEAD_ROWS:
        return _plain_losses(hidden, head, labels, targets)
    parts = [slice(start, start + HEAD_ROWS) for start in range(0, len(labels), HEAD_ROWS)]
    rows = [(hidden[part], head, labels[part], None if targets is None else targets[part]) for part in parts]
    return torch.cat([checkpoint(_plain_losses, *each, use_reentrant=False) for each in rows])


def _plain_losses(hidden: Tensor, head: Any, labels: Tensor, targets: TokenTargets | None) -> Tensor:
    logits = head(hidden).float()
    if targets is not None:
        return targets.from_logits(logits, labels)
    return cross_entropy(logits, labels, reduction="none")
