"""The objective `soft`: the teacher's distribution over the next token, beside the token that it wrote.

Hinton et al., 2015, arXiv 1503.02531; the k most probable tokens with a bucket for all others stand for the
distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distill.core.embedded import EMBEDDED
from distill.models.tokenizer_identity import tokenizer_file
from distill.recipe import BaseOptions, Recipe, Teacher
from distill.train.objectives.sft import Sft

if TYPE_CHECKING:
    from distill.train.kernels.targets import TokenTargets
    from distill.train.objectives import TrainingData


class SoftOptions(BaseOptions):
    """How much a token learns from the teacher's probabilities."""

    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of KL(teacher ‖ student) in a token's loss; the rest is cross entropy."""
    k: Annotated[int, Field(ge=1, le=512)] = 20
    """Most probable tokens that are kept of each distribution; all others share one bucket."""


def may_score(teacher: Teacher) -> bool:
    """Whether a teacher elsewhere can be asked to score texts: its tokenizer is on this machine."""
    return teacher.base_url is not None and (teacher.model in EMBEDDED or tokenizer_file(teacher.model) is not None)


class Soft(Sft):
    """Cross entropy mixed with the divergence from the teacher's token probabilities."""

    kind = "soft"
    Options = SoftOptions
    is_sharded = False
    has_targets = True

    def fault(self, recipe: Recipe) -> str:
        """A teacher here scores the rows; one elsewhere gave probabilities, or scores texts of its own tokens."""
        if any(one.serve or one.sampling.top_logprobs or may_score(one) for one in recipe.teachers):
            return ""
        return (
            "soft targets come from a teacher on this machine (`serve`), from what collect asked for (set "
            "teacher.sampling: {logprobs: true, top_logprobs: 20}), or from a server that scores texts, for which the "
            "teacher's tokenizer must be on this machine under the name teacher.model; else train by `kind: sft`"
        )

    def prepare(self, data: TrainingData) -> Mapping[str, Any]:
        """Make the targets that are missing; the first process computes them."""
        from accelerate import PartialState

        from distill.models.device import training_device
        from distill.train.objectives import soft_targets
        from distill.train.objectives.soft_source import Source

        super().prepare(data)
        settings = data.settings
        source = Source(
            folder=data.run,
            teachers=settings.teachers,
            sessions=data.sessions,
            collected=data.collected,
            template=settings.template,
            tokenizer=data.tokenizer,
            train_on=settings.options.train_on,
            k=self.options.k,
            say=data.say,
        )
        is_cpu = training_device(settings.options.device).type == "cpu"  # as TRL's arguments say it
        with PartialState(cpu=is_cpu).main_process_first():
            self._targets = soft_targets.prepare(data.examples.rows, source, weight=self.options.weight)
        self.facts = self._targets.facts
        return {"soft targets": self._targets.sha256}

    def targets(self, rows: Sequence[int]) -> TokenTargets | None:
        """The targets of the trained tokens of these rows."""
        return self._targets.of(rows)
