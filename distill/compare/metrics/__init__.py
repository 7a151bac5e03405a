"""Registry and interface of metrics: one or more numbers per answer to a held-out prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from distill.recipe import BaseOptions
from distill.types import Finish, Flow, Message, Model

METRICS = {
    "copied": "distill.compare.metrics.copied:Copied",
    "instructions": "distill.compare.metrics.instructions:Instructions",
    "diversity": "distill.compare.metrics.diversity:Diversity",
    "likelihood": "distill.compare.metrics.likelihood:Likelihood",
    "overlap": "distill.compare.metrics.overlap:Overlap",
    "similarity": "distill.compare.metrics.similarity:Similarity",
    "style": "distill.compare.metrics.style:Style",
}

Better = Literal["lower", "higher", "near 1", "teacher"]
"""Which way is better; `teacher`: the nearer to the teacher's value, whichever way that is."""
Scores: TypeAlias = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """One model's answer to a prompt."""

    text: str
    finish: Finish
    tokens: int | None = None
    """As the model's own tokenizer counts them; `None` where that is not known."""
    earlier: tuple[str, ...] = ()
    """Its answers to the turns before, where the question has several."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All that the model said, in order."""
        return (*self.earlier, self.text)


@dataclass(frozen=True, slots=True)
class Sample:
    """A metric's input: one prompt, one model, its answer, and the teacher's."""

    messages: tuple[Message, ...]
    """The prompt; of a question with several turns, with the answers that this model gave before."""
    model: Model
    answer: ModelAnswer
    reference: ModelAnswer | None
    """The teacher's first answer, where there is one; for the model `teacher` it is `answer` itself."""
    category: str = "all"
    """Category of the prompt."""
    prompt: int = 0
    """Index of the prompt."""
    checks: tuple[Mapping[str, Any], ...] = ()
    """Instructions of the prompt that a program can check; see `distill.compare.metrics.instruction_checks`."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Description of one number of a metric."""

    name: str
    title: str
    unit: str
    better: Better
    explanation: str
    """One sentence or two for the reader of the report: how it is computed and what it leaves out."""
    likeness: bool = False
    """Whether it says how like the teacher's the answers are; such a measure leads, before those of manners."""


class NoOptions(BaseOptions):
    """Options of a metric without any."""


class TextMetric(Protocol):
    """A metric of texts alone.

    It may also have `prepare(folder, samples) -> None`, called once before with the run folder and every sample that
    will be scored, for what takes all answers, or the training rows, to know; and `prompts() -> rows`, prompts of its
    own to ask beside the others, which no other metric sees.
    """

    scope: Literal["text"]
    measures: tuple[Measure, ...]

    def score(self, sample: Sample) -> Scores:
        """The numbers of one answer by the measure's name; one that is not defined for it is left out."""


class ModelMetric(Protocol):
    """A metric computed from likelihoods; it looks at no answer, so models without one are scored too."""

    scope: Literal["model"]
    measures: tuple[Measure, ...]
    models: tuple[Model, ...]
    """The models that it scores."""

    def score(self, messages: tuple[Message, ...], model: Model, reference: ModelAnswer) -> Flow[Scores]:
        """As for texts; yields its requests, and leaves a number out when one fails."""
