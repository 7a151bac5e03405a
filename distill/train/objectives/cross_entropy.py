"""Cross entropy as an objective, which the others change a part of; without options, and so without pydantic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.types import Pair, Session

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

    from distill.core.console import Say
    from distill.models.chat_template import Example
    from distill.recipe import Recipe
    from distill.train.callbacks import Log
    from distill.train.dataset import Examples
    from distill.train.kernels.targets import TokenTargets
    from distill.train.objectives import TrainingData
    from distill.train.options import TrainSettings
    from distill.train.step_guard import GuardedTrainer


class CrossEntropy:
    """Cross entropy on the teacher's answers."""

    kind = "sft"
    is_sharded = True
    """Whether it can be trained where FSDP or DeepSpeed divides the weights."""
    has_targets = False
    """Whether `targets` gives any."""
    watches_start = False
    """Whether held-out rows are evaluated before the first step too."""
    is_parallel = True
    """Whether it can be trained by several processes."""

    def __init__(self, options: Any = None) -> None:
        self.options = options
        self.rows: Sequence[Example] = ()
        self.facts: Mapping[str, Any] = {}
        """What `prepare` has to say in run.json."""

    def deciding(self) -> dict[str, Any]:
        """What decides the weights, by recipe key; empty for the default."""
        return {}

    def fault(self, recipe: Recipe) -> str:
        """Why this recipe cannot be trained by the objective, and what to change; empty where it can."""
        return ""

    def select(self, sessions: Sequence[Session], settings: TrainSettings, tokenizer: Any, say: Say) -> list[Session]:
        """The kept sessions that it learns from; raises `DistillError` where there are none."""
        if pairs := sum(isinstance(one, Pair) for one in sessions):
            say(
                f"{pairs} of {len(sessions)} rows are pairs: their chosen answers are learnt, the rejected ones are "
                "left alone (train.objective: {kind: preference} learns the choice)"
            )
        return list(sessions)

    def prepare(self, data: TrainingData) -> Mapping[str, Any]:
        """Keep the rows, before the model is loaded; returns what else than rows and options decides the weights.

        Raises `DistillError` for rows that it cannot learn from.
        """
        self.rows = data.examples.examples
        return {}

    def lengths(self) -> Sequence[int]:
        """Tokens of each row, by which steps and passes are planned; 0 for a row that is left out."""
        return [len(example.input_ids) for example in self.rows]

    def start(self, trainer: GuardedTrainer) -> None:
        """Take the loaded model, before the first step and before a checkpoint is read."""

    def examples(self, step: int, rows: Sequence[int]) -> dict[int, Sequence[Example]]:
        """What each row brings to optimizer step `step`, counted from 1; its examples share a forward pass."""
        return {row: (self.rows[row],) for row in rows}

    def count(self, examples: Sequence[Example]) -> int:
        """What a row's examples count in the mean over a step: by default, trained tokens."""
        return sum(example.trained for example in examples)

    def targets(self, rows: Sequence[int]) -> TokenTargets | None:
        """What is known of the trained tokens of these rows' examples, row after row, besides their labels."""
        return None

    def loss(self, nats: Tensor, tokens: Tensor, rows: Sequence[int]) -> Tensor:
        """Each row's loss (R), to be summed and divided by the step's count.

        `nats` (N) are the losses of the trained tokens, row after row; `tokens` (E) their number in each example.
        """
        return sums(nats, tokens)

    def callbacks(self, log: Log) -> Sequence[TrainerCallback]:
        """Callbacks that watch the training, log events and may end it."""
        return ()


def plain(examples: Examples) -> CrossEntropy:
    """Cross entropy on these examples."""
    objective = CrossEntropy()
    objective.rows = examples.examples
    return objective


def sums(nats: Tensor, tokens: Tensor) -> Tensor:
    """Sums (E) of consecutive values (N) by example, of which `tokens` (E) are the lengths; differentiable."""
    import torch

    places = torch.arange(len(tokens), device=nats.device).repeat_interleave(tokens)
    return nats.new_zeros(len(tokens)).index_add(0, places, nats)
