"""Targets that are a teacher's own distributions: the generalised Jensen-Shannon divergence over the whole vocabulary.

Agarwal et al., 2024, "On-Policy Distillation of Language Models" (arXiv 2306.13649), equation 3, with the ends of TRL's
`ChunkedDivergenceFunction`: β 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TOP = 20
"""Most probable tokens of each model whose overlap is counted."""


@dataclass(frozen=True, slots=True)
class Distributions:
    """The next-token distributions of a teacher at N tokens, as states that its output head turns into logits."""

    states: Tensor
    """N × H."""
    head: Callable[[Tensor], Tensor]
    """From states to logits over the teacher's vocabulary."""
    vocabulary: int
    """Tokens that both models have, from 0; rows that only fill up a vocabulary are cut off."""
    ends: tuple[int, int]
    """The teacher's end token and the student's, which trade places."""

    def logs(self) -> Tensor:
        """Log-probabilities, N × vocabulary, in float32."""
        logits = self.head(self.states)[:, : self.vocabulary].float()
        if self.ends[0] != self.ends[1]:
            logits[:, list(self.ends)] = logits[:, list(self.ends[::-1])]
        return torch.log_softmax(logits, -1)


@dataclass(frozen=True, slots=True)
class Divergence:
    """The divergence of the student from a teacher at each of N trained tokens, in nats."""

    teacher: Distributions
    betas: Tensor
    """N, from 0 to 1."""

    def __getitem__(self, part: slice) -> Divergence:
        """Those of a slice of the tokens."""
        return Divergence(replace(self.teacher, states=self.teacher.states[part]), self.betas[part])

    def to(self, device: torch.device) -> Divergence:
        """Those on a device."""
        return Divergence(replace(self.teacher, states=self.teacher.states.to(device)), self.betas.to(device))

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Divergence of each token (N) from logits of N × V in float32; differentiable."""
        logs, teacher = torch.log_softmax(logits[:, : self.teacher.vocabulary], -1), self.teacher.logs()
        losses = logs.new_zeros(len(logs))
        for beta, rows in self._kinds():
            losses[rows] = divergence(logs[rows], teacher[rows], beta)
        return losses

    def tile(self, logs: Tensor, labels: Tensor, *, needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Divergences (n) from log-probabilities of n × V, and their gradient by the logits."""
        teacher, width = self.teacher.logs(), self.teacher.vocabulary
        losses, gradient = logs.new_empty(len(logs)), torch.zeros_like(logs) if needs_gradient else None
        shared = logs if width == logs.shape[1] else torch.log_softmax(logs[:, :width], -1)
        for beta, rows in self._kinds():
            losses[rows], by_logit = _with_gradient(shared[rows], teacher[rows], beta)
            if gradient is not None:
                gradient[rows, :width] = by_logit
        return losses, gradient

    def _kinds(self) -> list[tuple[float, Tensor | slice]]:
        """Each β with the places of its tokens."""
        betas = self.betas.unique().tolist()
        if len(betas) == 1:
            return [(betas[0], slice(None))]  # a view, where places would copy
        return [(beta, (self.betas == beta).nonzero()[:, 0]) for beta in betas]


def divergence(logs: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Divergence of each row (n) from log-probabilities of student and teacher, both n × V; differentiable."""
    if beta == 0:
        return (teacher.exp() * (teacher - logs)).sum(1)
    if beta == 1:
        return (logs.exp() * (logs - teacher)).sum(1)
    mixture = torch.logaddexp(logs + math.log(1 - beta), teacher + math.log(beta))
    return beta * divergence(mixture, teacher, 0) + (1 - beta) * divergence(logs, mixture, 1)


def _with_gradient(logs: Tensor, teacher: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Divergences (n), and their gradient by the student's logits (n × V)."""
    p = logs.exp()
    if beta == 0:
        q = teacher.exp()
        return (q * (teacher - logs)).sum(1), p - q
    mixture = teacher if beta == 1 else torch.logaddexp(logs + math.log(1 - beta), teacher + math.log(beta))
    gap = logs - mixture
    own = (p * gap).sum(1)
    gradient = gap.sub_(own[:, None]).mul_(p)
    if beta == 1:
        return own, gradient
    return beta * divergence(mixture, teacher, 0) + (1 - beta) * own, gradient.mul_(1 - beta)


@dataclass(frozen=True, slots=True)
class Overlap:
    """In place of a loss: the share of the teacher's `TOP` tokens that are among the student's, at each token."""

    teacher: Distributions

    def __getitem__(self, part: slice) -> Overlap:
        """Those of a slice of the tokens."""
        return Overlap(replace(self.teacher, states=self.teacher.states[part]))

    def to(self, device: torch.device) -> Overlap:
        """Those on a device."""
        return Overlap(replace(self.teacher, states=self.teacher.states.to(device)))

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Shares (N) from logits of N × V."""
        ours, theirs = (one.topk(TOP).indices for one in (logits[:, : self.teacher.vocabulary], self.teacher.logs()))
        return (ours[:, :, None] == theirs[:, None, :]).any(1).float().mean(1)

    def tile(self, logs: Tensor, labels: Tensor, *, needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Shares (n) from log-probabilities of n × V; they have no gradient."""
        return self.from_logits(logs, labels), None
