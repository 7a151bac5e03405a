"""Soft targets: the forward KL divergence to a teacher's most probable tokens, mixed with the cross entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

PADDING = -65504.0
"""Log-probability of an entry that counts nothing: float16's lowest number."""


@dataclass(frozen=True, slots=True)
class SoftRows:
    """The teacher's next-token distribution at each of N trained tokens, as k entries and what they leave out."""

    ids: Tensor
    """N × k: token ids in the student's vocabulary, distinct in a row but for padding."""
    logprobs: Tensor
    """N × k: their log-probabilities in nats, not renormalised; at most `PADDING` at an entry that fills up a shorter
    list, whose id is one of the row's again."""
    tail: Tensor
    """N: log of the probability that the entries leave out."""
    weights: Tensor
    """N: share of the divergence in the token's loss; the rest is cross entropy. 0 where there is no target."""

    def __getitem__(self, part: slice) -> SoftRows:
        """A slice of the rows."""
        return SoftRows(*(getattr(self, one.name)[part] for one in fields(self)))

    def to(self, device: torch.device) -> SoftRows:
        """The rows on a device."""
        return SoftRows(*(getattr(self, one.name).to(device) for one in fields(self)))

    @classmethod
    def cat(cls, rows: Sequence[SoftRows]) -> SoftRows:
        """Rows one after the other."""
        return cls(*(torch.cat([getattr(one, each.name) for one in rows]) for each in fields(cls)))

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mixed loss of each token (N) from logits of N × V in float32; differentiable."""
        logs = torch.log_softmax(logits, -1)
        log_rest = logs.scatter(1, self.ids, -torch.inf).logsumexp(1)
        return mixed(-logs.gather(1, labels[:, None])[:, 0], logs.gather(1, self.ids), log_rest, self)

    def tile(self, logs: Tensor, labels: Tensor, *, needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Mixed losses (n) from log-probabilities of n × V, and their gradient by the logits in the same memory.

        By the logit of token j it is q_j (1 − w + w (m − t / r)) off the entries and (1 − w) q_j + w (m q_j − p_j) on
        them, with m = Σ p + t, less 1 − w at the label.
        """
        cross_entropy, logq = -logs.gather(1, labels[:, None])[:, 0], logs.gather(1, self.ids)
        others = logs.exp_().scatter_(1, self.ids, 0.0)
        rest = others.sum(1).clamp_min(torch.finfo(logs.dtype).tiny)
        losses = mixed(cross_entropy, logq, rest.log(), self)
        if not needs_gradient:
            return losses, None
        weight, tail, p, q = self.weights, self.tail.exp(), self.logprobs.exp(), logq.exp()
        mass = p.sum(1) + tail
        others.mul_((1 - weight + weight * (mass - tail / rest))[:, None])
        at_entries = (1 - weight)[:, None] * q + weight[:, None] * (mass[:, None] * q - p)
        at_entries.masked_fill_(self.logprobs <= PADDING, 0.0)
        others.scatter_add_(1, self.ids, at_entries).scatter_add_(1, labels[:, None], (weight - 1)[:, None])
        return losses, others


def mixed(cross_entropy: Tensor, logq: Tensor, log_rest: Tensor, soft: SoftRows) -> Tensor:
    """Loss of each token (N): (1 − w) · cross entropy + w · KL(teacher ‖ student), in nats.

    `logq` (N × k) are the student's log-probabilities of the entries, `log_rest` (N) that of all other tokens together.
    Σ p (log p − log q) + t (log t − log r) with the entries' p, their tail t, and the student's rest r: a tail bucket,
    which leaves the gradient at the entries as it is under the whole vocabulary. To renormalise p instead would teach
    the student to be surer than its teacher (Anshumann et al., 2025, arXiv 2503.16870).
    """
    entries = (soft.logprobs.exp() * (soft.logprobs - logq)).sum(1)
    tail = soft.tail.exp()
    rest = torch.where(tail > 0, tail * (soft.tail - log_rest), torch.zeros_like(tail))
    return torch.where(
        soft.weights > 0, (1 - soft.weights) * cross_entropy + soft.weights * (entries + rest), cross_entropy
    )
