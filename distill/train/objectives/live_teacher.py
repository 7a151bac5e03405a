"""A teacher in the process of training, which gives its whole next-token distribution at every trained token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.models import chat_template, loading
from distill.models.chat_template import IGNORED, Example
from distill.models.padding import by_length, context_tokens, padded
from distill.models.pruning import backbone_of
from distill.models.trial import attempt, is_near
from distill.train.kernels.autograd import product
from distill.train.kernels.divergence import Distributions
from distill.train.mask_check import MaskRow

ROWS, TOKENS = 32, 4_096
"""Most rows and padded tokens in one of its forward passes."""
PROBE = range(5, 21)
"""Token ids on which its output head is tried."""
AGREES = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""Largest difference of logits by norm, relative to the model's own; another scale or a soft cap gives far more."""


@dataclass(frozen=True, slots=True)
class Reading:
    """An example as the student reads it and as the teacher does: the same trained tokens after two prompts."""

    ours: Example
    theirs: Example


class LiveTeacher:
    """A frozen teacher and the template in which it reads."""

    def __init__(
        self, folder: Path, template: str, tokenizer: Any, *, quantise: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Load the model in `folder`; `template` and `tokenizer` are the student's. Raises `ModelError`."""
        self._tokenizer = loading.load_tokenizer(folder)
        self._template = "own" if self._tokenizer.chat_template else template
        theirs = chat_template.end_ids(self._template, self._tokenizer)[0]
        self._ends = theirs, chat_template.end_ids(template, tokenizer)[0]
        self._model = loading.load_causal(folder, quantise=quantise, dtype=dtype, device=device).requires_grad_(False)
        self.context = context_tokens(self._model)
        self.vocabulary = min(len(tokenizer), self._model.get_output_embeddings().weight.shape[0])
        """Tokens that both models have; the trainer lowers it to what the student has."""
        self._head = self._linear_head()

    @property
    def jinja(self) -> str:
        """The chat template in which it reads."""
        return chat_template.jinja(self._template, self._tokenizer)

    def read(self, row: MaskRow, train_on: chat_template.TrainOn) -> Reading | None:
        """A row in both templates; None where the teacher's cannot render it or gives its answers other tokens."""
        try:
            theirs = row.encoded(self._template, self._tokenizer, train_on)
        except DistillError:
            return None
        swap = dict([self._ends, self._ends[::-1]])
        trained, own = ([one for one in each.labels if one != IGNORED] for each in (theirs, row.example))
        return Reading(row.example, theirs) if [swap.get(one, one) for one in trained] == own else None

    def distributions(self, examples: Sequence[Example]) -> Distributions:
        """Its distributions at the trained tokens of these examples, one example after the other."""
        states: list[Tensor] = [torch.empty(0)] * len(examples)
        for group in by_length([len(one.input_ids) for one in examples], rows=ROWS, tokens=TOKENS):
            ids, mask = padded([examples[place].input_ids for place in group], on_left=False, device=self._model.device)
            with torch.no_grad():
                found = self._states(ids, mask)
            for row, place in enumerate(group):
                labels = torch.tensor(examples[place].labels, device=found.device)
                states[place] = found[row, (labels != IGNORED).nonzero()[:, 0] - 1]
        return Distributions(torch.cat(states), self._head or _as_they_are, self.vocabulary, self._ends)

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States (B × T × H) of which the head makes logits; logits themselves where it is more than a linear layer."""
        module = backbone_of(self._model) if self._head is not None else self._model
        output = module(input_ids=ids, attention_mask=mask, use_cache=False)
        states: Tensor = output.last_hidden_state if self._head is not None else output.logits
        return states

    def _linear_head(self) -> Callable[[Tensor], Tensor] | None:
        """The output head, if the model does nothing else to its logits."""
        layer = self._model.get_output_embeddings()
        ids = torch.tensor([list(PROBE)], device=self._model.device) % self.vocabulary

        def head(states: Tensor) -> Tensor:
            logits: Tensor = (
                layer(states) if getattr(layer, "bias", None) is not None else product(states, layer.weight)
            )
            return logits

        def tried() -> Tensor:
            states = backbone_of(self._model)(input_ids=ids, use_cache=False).last_hidden_state
            return head(states[0])

        with torch.no_grad():
            expected, mine = self._model(input_ids=ids, use_cache=False).logits[0], attempt(tried)
        agrees = mine is not None and is_near(expected, mine, tolerance=AGREES[self._model.dtype])
        return head if agrees else None


def _as_they_are(states: Tensor) -> Tensor:
    return states
