"""Verifies an exported student against the trained one; the numbers of the export's receipt.

Both read the same held-out conversations, teacher-forced: at each token of the teacher's answers, including end tokens,
the two distributions of the next token are compared. The trained student computes in float32, the export as it loads
for its users: whole weights in their own dtype, a GGUF file in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.errors import DistillError
from distill.models import chat_template
from distill.models.third_party import quietly
from distill.types import Session

MOST_TOKENS = 2_048
"""Largest number of tokens compared; their distributions over 49,152 words take 0.4 GB of disk during the export."""

Watch = Callable[[int, int], None]
"""Called with the work done in a phase, and all of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Tolerances of an export."""

    kl: float
    """Largest mean divergence, in nats per token."""
    disagree: float
    """Largest share of tokens at which the most probable token differs."""


@dataclass(frozen=True, slots=True)
class ExportDeviation:
    """Deviation of an export from the trained student."""

    rows: int
    tokens: int
    mean_kl: float
    """KL(trained ‖ exported), mean over tokens, in nats."""
    max_kl: float
    """The largest KL at one token."""
    top1_agreement: float
    """Share of tokens at which both models have the same most probable token."""

    def within(self, limits: Limits) -> bool:
        """Whether it keeps the limits; one token may always disagree, as two tokens may be equally probable."""
        disagreeing = round((1 - self.top1_agreement) * self.tokens)
        return self.mean_kl <= limits.kl and disagreeing <= max(1, math.ceil(limits.disagree * self.tokens))


def rows_of(
    sessions: Sequence[Session], template: str, tokenizer: Any, *, context: int, most_tokens: int = MOST_TOKENS
) -> list[chat_template.Example]:
    """Conversations to compare on, in order, until they have `most_tokens` answer tokens; too long ones are skipped."""
    rows: list[chat_template.Example] = []
    tokens = 0
    for session in sessions:
        try:
            row = chat_template.encode(
                session.messages, template, tokenizer, truncated=bool(session.meta.get("truncated"))
            )
        except DistillError:
            continue  # training has left it out as well
        if row.trained and len(row.input_ids) <= context and tokens < most_tokens:
            rows.append(row)
            tokens += row.trained
    return rows


class Reference:
    """The outputs of the trained model, kept in a file during the export so that only one model is in memory."""

    def __init__(self, path: Path, rows: Sequence[chat_template.Example]) -> None:
        self.rows = rows
        self.tokens = sum(row.trained for row in rows)
        self._path = path
        self._logprobs: Any = None

    def record(self, model: Any, watch: Watch) -> None:
        """Store the log-probabilities of the trained model, tokens × V."""
        done = 0
        for row in self.rows:
            logprobs = _logprobs(model, row)
            if self._logprobs is None:
                shape = (self.tokens, logprobs.shape[-1])
                self._logprobs = np.memmap(self._path, dtype=np.float32, mode="w+", shape=shape)
            self._logprobs[done : done + len(logprobs)] = logprobs.cpu().numpy()
            done += len(logprobs)
            watch(done, self.tokens)

    def compare(self, model: Any, watch: Watch) -> ExportDeviation:
        """Compare the exported model on the same rows; tokens that only one of the two models has are left out."""
        done, total, most, agreeing = 0, 0.0, 0.0, 0
        for row in self.rows:
            ours = _logprobs(model, row)
            theirs = torch.from_numpy(np.array(self._logprobs[done : done + len(ours)])).to(ours.device)
            width = min(ours.shape[-1], theirs.shape[-1])
            kl = divergence(theirs[:, :width], ours[:, :width])
            total, most = total + float(kl.sum()), max(most, float(kl.max()))
            agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            done += len(ours)
            watch(done, self.tokens)
        mean = total / done
        return ExportDeviation(len(self.rows), done, 0.0 if mean < 0 else mean, most, agreeing / done)  # keeps a NaN

    def close(self) -> None:
        """Remove the file."""
        self._logprobs = None
        self._path.unlink(missing_ok=True)


def divergence(trained: torch.Tensor, exported: torch.Tensor) -> torch.Tensor:
    """KL(trained ‖ exported) in nats per token (T), of log-probabilities T × V; summed in float64."""
    p, q = trained.double(), exported.double()
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)


def _logprobs(model: Any, row: chat_template.Example) -> torch.Tensor:
    """Log-probabilities, T × V in float32, that predict each of the T trained tokens."""
    predicting = [place - 1 for place, label in enumerate(row.labels) if label != chat_template.IGNORED and place]
    with torch.inference_mode(), quietly():
        logits = model(
            input_ids=torch.tensor([row.input_ids], device=model.device),
            use_cache=False,
            logits_to_keep=torch.tensor(predicting, device=model.device),
        ).logits
    return torch.log_softmax(logits[0].float(), dim=-1)
