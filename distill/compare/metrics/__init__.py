"""Registry and interface of metrics: one or more numbers per answer to a held-out prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from distill.recipe import BaseOptions
from distill.types import Finish, Flow, Message, Model

METRICS = {
    "accuracy": "distill.compare.metrics.accuracy:Accuracy",
    "copied": "distill.compare.metrics.copied:Copied",
    "instructions": "distill.compare.metrics.instructions:Instructions",
    "diversity": "distill.compare.metrics.diversity:Diversity",
    "likelihood": "distill.compare.metrics.likelihood:Likelihood",
    "probabilities": "distill.compare.metrics.probabilities:Probabilities",
    "overlap": "distill.compare.metrics.overlap:Overlap",
    "similarity": "distill.compare.metrics.similarity:Similarity",
    "style": "distill.compare.metrics.style:Style",
}

Better = Literal["lower", "higher", "near 1", "teacher"]
"""Which way is better; `teacher`: the nearer to the teacher's value, whichever way that is."""
Scores: TypeAlias = Mapping[str, float]
Text: TypeAlias = tuple[tuple[Message, ...], str]
"""A conversation before an answer, and the answer."""


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """One model's answer to a prompt."""

    text: str
    finish: Finish
    tokens: int | None = None
    """By the model's own tokenizer; `None` where not known."""
    earlier: tuple[str, ...] = ()
    """Its answers to the earlier turns, where the question has several."""
    samples: tuple[str, ...] = ()
    """Independent samples of the last answer, where a metric asks for them; of base and student it is the first."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All answers of the model, in order."""
        return (*self.earlier, self.text)


@dataclass(frozen=True, slots=True)
class Sample:
    """A metric's input: one prompt, one model, its answer, and the teacher's."""

    messages: tuple[Message, ...]
    """The conversation before the answer; with several turns, it includes this model's earlier answers."""
    model: Model
    answer: ModelAnswer
    reference: ModelAnswer | None
    """The teacher's first answer, where there is one; for the model `teacher`, `answer` itself."""
    category: str = "all"
    """Category of the prompt."""
    prompt: int = 0
    """Index of the prompt."""
    checks: tuple[Mapping[str, Any], ...] = ()
    """The prompt's checkable instructions; see `distill.compare.metrics.instruction_checks`."""
    solution: Mapping[str, Any] = field(default_factory=dict)
    """What the prompt has of `reference`, the right answer, and `checks`; see `distill.text.references`."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Description of one number of a metric."""

    name: str
    title: str
    unit: str
    better: Better
    explanation: str
    """One or two sentences for the reader of the report: how it is computed and what it leaves out."""
    likeness: bool = False
    """Whether it measures similarity to the teacher's answers; such a measure leads the headline, before style."""
    correctness: bool = False
    """Whether it measures if answers are right; such a measure leads the headline before all others."""


PAIR = "pair"
"""Role of the requests of a `PairMetric`: teacher and student read one answer together."""


class NoOptions(BaseOptions):
    """Options of a metric that has none."""


class TextMetric(Protocol):
    """A metric of texts alone.

    It may also have `prepare(folder, samples) -> None`, called once before scoring with the run folder and all samples,
    for metrics that need all answers or the training rows; `prompts() -> rows`, additional prompts that only this
    metric scores; `look(solutions) -> notes`, called before any model is asked; `tables(samples, seed)`, entries of
    scores.json beside the measures; and `samples`, how many answers it needs of base, student and teacher.
    """

    scope: Literal["text"]
    measures: tuple[Measure, ...]

    def score(self, sample: Sample) -> Scores:
        """One answer's numbers by name of the measure; undefined ones are left out."""


class ModelMetric(Protocol):
    """A metric computed from likelihoods of the teacher's answers; models without an answer are scored too."""

    scope: Literal["model"]
    measures: tuple[Measure, ...]
    models: tuple[Model, ...]
    """The models that it scores."""

    def score(self, messages: tuple[Message, ...], model: Model, reference: ModelAnswer) -> Flow[Scores]:
        """As for texts; yields its requests, and leaves out numbers whose request failed."""


class PairMetric(Protocol):
    """A metric computed from a student's distributions beside the teacher's, where both are at hand."""

    scope: Literal["pair"]
    measures: tuple[Measure, ...]
    models: tuple[Model, ...]
    """The models that it compares with the teacher."""
    teacher: Scores
    """The teacher's own numbers, which are known: those of a model that is the same as the teacher."""

    def score(self, reference: Text, own: Text | None) -> Flow[Scores]:
        """Numbers on the teacher's answer and on the model's own; its requests have the role `PAIR`."""


Metric: TypeAlias = TextMetric | ModelMetric | PairMetric
