"""The objective `on_policy`: the teacher's distribution on answers that the student samples itself.

Agarwal et al., 2024, arXiv 2306.13649; Qwen3's "strong-to-weak distillation" (2505.09388, section 4.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distill.core.hashing import json_sha256
from distill.core.weights import fingerprint
from distill.errors import DistillError, RecipeError, some_of
from distill.recipe import BaseOptions, Recipe
from distill.train.objectives.sft import Sft

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from distill.models.chat_template import Example
    from distill.train.callbacks import Log
    from distill.train.kernels.targets import TokenTargets
    from distill.train.objectives import TrainingData
    from distill.train.objectives.live_teacher import LiveTeacher, Reading
    from distill.train.objectives.rollouts import Prompt, Rollout
    from distill.train.step_guard import GuardedTrainer


class OnPolicyOptions(BaseOptions):
    """What is sampled, and how it is compared with the teacher."""

    beta: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Divergence on the student's answers: 1 is KL(student ‖ teacher), 0 KL(teacher ‖ student), and between them the
    generalised Jensen-Shannon divergence."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Of the sampled answers; the distributions are compared at 1."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of a sampled answer; when left out, those of the teacher's longest."""
    teacher_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the rows that bring the teacher's own answer to a step, learnt by KL(teacher ‖ student), and not one of
    the student's."""
    from_untrained: bool = False
    """Whether the student may be a model that no earlier run has trained."""


class OnPolicy(Sft):
    """Divergence from a teacher in this process, on the student's own answers."""

    kind = "on_policy"
    Options = OnPolicyOptions
    is_sharded = False
    is_parallel = False
    has_targets = True

    def fault(self, recipe: Recipe) -> str:
        """One teacher must run on this machine, and the student have been trained before."""
        here = [one for one in recipe.teachers if one.serve is not None]
        if recipe.teachers and not here:
            return (
                "on_policy scores the student's answers with the whole vocabulary of a teacher in this process, and "
                "the teacher is behind base_url; give its weights (`model` and `serve`), or take `kind: soft`"
            )
        if len(here) != 1:
            return f"on_policy needs one teacher on this machine (`serve`), and the recipe has {len(here)}"
        assert recipe.student is not None
        assert recipe.train is not None
        if getattr(recipe.train.options, "best", None) is not None:
            return "on_policy keeps the better of its start and its end; leave train.best out"
        if not self.options.from_untrained and recipe.student.continues is None:
            return (
                "on_policy improves a student that can already answer, and student.model is none of distill's; name a "
                "run that trained one by `kind: sft` or `soft` (student.model: runs/NAME), or set from_untrained: true"
            )
        return ""

    def prepare(self, data: TrainingData) -> Mapping[str, Any]:
        """Load the teacher, before the student so that passes are planned by the memory it leaves, and read the rows.

        Raises `RecipeError` for a teacher of another tokenizer, `DistillError` where no row can be used.
        """
        from distill.train.objectives.rollouts import longest_answer

        super().prepare(data)
        self._data, settings = data, data.settings
        ((name, model),) = settings.teachers.items()
        self.teacher = _loaded(name, model, data)
        self.readings = [self.teacher.read(row, settings.options.train_on) for row in data.examples.rows]
        self._limit = self.options.max_tokens or longest_answer(self.rows)
        self.prompts = [self.prompts_of(reading) for reading in self.readings]
        left_out = [row.id for row, prompts in zip(data.examples.rows, self.prompts, strict=True) if not prompts]
        if len(left_out) == len(self.prompts):
            raise DistillError(
                f"train.objective on_policy: {name} can read none of the {len(left_out)} rows: its template gives "
                "their answers other tokens, or its context leaves no room for them"
            )
        if left_out:
            data.say(
                f"on_policy: {len(left_out)} rows are left out ({some_of(left_out)}): in {name}'s template their "
                "answers have other tokens, or the prompt leaves no room in its context"
            )
        return {
            "on-policy teacher": json_sha256([fingerprint(model), self.teacher.jinja]),
            "on-policy watch": [settings.options.eval_steps, [one.id for one in data.held_out]],
        }

    def prompts_of(self, reading: Reading | None) -> list[Prompt]:
        """The prompts of a row; empty where one of them leaves no room for an answer as long as the teacher's."""
        from distill.train.objectives.rollouts import prompts_of

        if reading is None:
            return []
        prompts = prompts_of(reading, limit=self._limit, context=self.teacher.context)
        return prompts if all(one.limit >= min(self._limit, len(one.answer)) for one in prompts) else []

    def lengths(self) -> Sequence[int]:
        """Those of the teacher's answers, so that the steps are those of `sft`."""
        return [length if prompts else 0 for length, prompts in zip(super().lengths(), self.prompts, strict=True)]

    def start(self, trainer: GuardedTrainer) -> None:
        """Cut the teacher's vocabulary to what the student has too."""
        self.trainer = trainer
        rows = trainer.model.get_output_embeddings().weight.shape[0]
        self.teacher.vocabulary = min(self.teacher.vocabulary, rows)

    def examples(self, step: int, rows: Sequence[int]) -> dict[int, Sequence[Example]]:
        """Answers that the student samples now, or the row's own."""
        seed, ids = self._data.settings.seed, self._data.examples.ids
        own = {row for row in rows if Random(f"{seed}:{step}:{ids[row]}").random() < self.options.teacher_share}
        places = [(row, number) for row in rows if row not in own for number in range(len(self.prompts[row]))]
        self.rollouts = self.sampled(
            [(f"{seed}:{step}:{ids[row]}:{number}", self.prompts[row][number]) for row, number in places]
        )
        self._step: dict[int, list[Reading]] = {row: [] for row in rows}
        self._betas = {row: 0.0 if row in own else self.options.beta for row in rows}
        for row in own:
            reading = self.readings[row]
            assert reading is not None, "a row that the teacher cannot read is in no step"
            self._step[row] = [reading]
        for (row, _), rollout in zip(places, self.rollouts, strict=True):
            self._step[row].append(rollout.reading)
        return {row: tuple(one.ours for one in readings) for row, readings in self._step.items()}

    def sampled(self, prompts: Sequence[tuple[str, Prompt]]) -> list[Rollout]:
        """An answer of the student as it is now to each prompt, seeded by the text beside it."""
        from distill.train.objectives.rollouts import sampled

        data, temperature = self._data, self.options.temperature
        return sampled(self.trainer.model, data.tokenizer, data.settings.template, prompts, temperature=temperature)

    def targets(self, rows: Sequence[int]) -> TokenTargets | None:
        """The teacher's distributions at the tokens of these rows' examples in the current step."""
        readings = [(reading, self._betas[row]) for row in rows for reading in self._step[row]]
        return self.divergence([one for one, _ in readings], [beta for _, beta in readings])

    def divergence(self, readings: Sequence[Reading], betas: Sequence[float]) -> TokenTargets:
        """The divergence at the trained tokens of readings, each by its β."""
        import torch

        from distill.train.kernels.divergence import Divergence

        each = torch.tensor(betas).repeat_interleave(torch.tensor([one.ours.trained for one in readings]))
        distributions = self.teacher.distributions([one.theirs for one in readings])
        return Divergence(distributions, each.to(distributions.states.device))

    def callbacks(self, log: Log) -> Sequence[TrainerCallback]:
        """The guard of the rollouts."""
        from distill.train.objectives.rollout_watch import RolloutWatch

        return (RolloutWatch(self, self._data, log),)


def another_tokenizer(teacher: str, difference: str) -> str:
    """Why a teacher of another tokenizer cannot teach so, in a line."""
    return (
        f"train.objective on_policy: {teacher} has another tokenizer than the student ({difference}), and their "
        "probabilities are compared token by token; take a student of its family, or `kind: soft`, which maps them"
    )


def _loaded(name: str, model: str, data: TrainingData) -> LiveTeacher:
    """The teacher, in 4 bits on a GPU where the student is. Raises `RecipeError` for another tokenizer."""
    from distill.models import loading, tokenizer_identity
    from distill.models.device import compute_dtype, training_device
    from distill.train.objectives.live_teacher import LiveTeacher

    options = data.settings.options
    folder = loading.materialise(model, say=data.say)
    if difference := tokenizer_identity.difference(loading.load_tokenizer(folder), data.tokenizer):
        raise RecipeError(another_tokenizer(name, difference))
    device = training_device(options.device)
    quantise = options.method == "qlora" and device.type == "cuda"
    data.say(f"on_policy: {name} scores beside the student{', in 4 bits' if quantise else ''}")
    return LiveTeacher(
        folder, data.settings.template, data.tokenizer, quantise=quantise,
        dtype=compute_dtype(options.dtype, device), device=device,
    )  # fmt: skip
