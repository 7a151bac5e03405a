"""Prompts, answers and scores of a comparison in progress."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.compare.metrics import Measure, Model, ModelAnswer, ModelMetric, Sample, Scores, TextMetric
from distill.types import Message

EVERY = "all"
"""Category of prompts that declare none."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out prompt, with the teacher's first answer where it is known beforehand."""

    id: str
    messages: tuple[Message, ...]
    reference: ModelAnswer | None = None
    teacher: str | None = None
    """Who gave it."""
    again: int = 1
    """The replica that is asked as its second answer; another than the first was, of which best_of draws several."""
    category: str = EVERY
    later: tuple[str, ...] = ()
    """What the user says after each answer, in a question of several turns."""
    solution: str | None = None
    """A right answer that the prompt's author gives, for a judge."""
    checks: tuple[Mapping[str, Any], ...] = ()
    """Instructions in it that a program can check."""
    asked_by: str | None = None
    """The metric that asks it for itself; `None` of the prompts that all are compared on."""

    def with_turns(self, answer: ModelAnswer) -> tuple[Message, ...]:
        """The conversation that `answer` ends: the prompt, and the turns that a model has answered before."""
        messages = list(self.messages)
        for reply, asked in zip(answer.earlier, self.later, strict=False):
            messages += [Message("assistant", reply), Message("user", asked)]
        return tuple(messages)


@dataclass(slots=True)
class ComparisonResults:
    """Answers and scores so far, by model and prompt index."""

    prompts: list[Prompt]
    answers: dict[Model, dict[int, ModelAnswer]] = field(default_factory=dict)
    scores: dict[Model, dict[int, dict[str, float]]] = field(default_factory=dict)
    missing: Counter[Model] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    metric_notes: dict[str, str] = field(default_factory=dict)
    """By name of the measure."""
    names: dict[Model, str] = field(default_factory=dict)
    """What each model is called."""
    more: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What else is known of a prompt, as it stands in its line of answers.jsonl: `leak`, `outcome` …"""

    def __post_init__(self) -> None:
        """Take the teacher's answers that came with the prompts."""
        known = {index: prompt.reference for index, prompt in enumerate(self.prompts) if prompt.reference is not None}
        if known:
            self.answers["teacher"] = known

    @property
    def shared(self) -> list[int]:
        """The prompts that all metrics look at: all but those that a metric asks for itself."""
        return [index for index, prompt in enumerate(self.prompts) if prompt.asked_by is None]

    def reference(self, index: int) -> ModelAnswer | None:
        """The teacher's first answer to a prompt."""
        return self.answers.get("teacher", {}).get(index)

    def add(self, model: Model, index: int, scores: Scores) -> None:
        """Take a model's scores on a prompt; a number that is not finite is no score."""
        known = self.scores.setdefault(model, {}).setdefault(index, {})
        known.update({name: value for name, value in scores.items() if math.isfinite(value)})

    def record(self, index: int, name: str, value: Any) -> None:
        """Write something of a prompt into its line of answers.jsonl."""
        self.more.setdefault(index, {})[name] = value

    def values(self, measure: Measure, model: Model) -> dict[int, float]:
        """By prompt, for those that have one."""
        rows = self.scores.get(model, {})
        return {index: rows[index][measure.name] for index in sorted(rows) if measure.name in rows[index]}


def score_texts(results: ComparisonResults, metrics: Sequence[TextMetric | ModelMetric], folder: Path) -> None:
    """Score every answer by the metrics that read texts alone."""
    every = [
        (model, index, _sample(results, model, index))
        for model, answers in results.answers.items()
        for index in answers
    ]
    for metric in metrics:
        if metric.scope == "text":
            named = (None, type(metric).__name__)
            samples = [one for one in every if results.prompts[one[1]].asked_by in named]
            if (prepare := getattr(metric, "prepare", None)) is not None:
                prepare(folder, [sample for _, _, sample in samples])
            for model, index, sample in samples:
                results.add(model, index, metric.score(sample))


def _sample(results: ComparisonResults, model: Model, index: int) -> Sample:
    prompt, answer = results.prompts[index], results.answers[model][index]
    reference = results.reference(index)
    return Sample(prompt.with_turns(answer), model, answer, reference, prompt.category, index, prompt.checks)


def line(results: ComparisonResults, index: int) -> dict[str, Any]:
    """The prompt's line of answers.jsonl; what there is not is left out."""
    prompt = results.prompts[index]
    info = {"turns": prompt.later, "reference": prompt.solution}
    return {
        "id": prompt.id,
        "messages": prompt.messages,
        "category": prompt.category,
        **{name: value for name, value in info.items() if value},
        "answers": {
            model: _answer(results.answers[model][index]) for model in MODELS if index in results.answers.get(model, {})
        },
        "scores": {model: results.scores[model][index] for model in MODELS if results.scores.get(model, {}).get(index)},
        **results.more.get(index, {}),
    }


def _answer(answer: ModelAnswer) -> dict[str, Any]:
    earlier = {"earlier": answer.earlier} if answer.earlier else {}
    return {"text": answer.text, "finish": answer.finish, "tokens": answer.tokens, **earlier}


MODELS: tuple[Model, ...] = ("base", "student", "teacher", "teacher_again")
NAMES: dict[Model, str] = {
    "base": "the base",
    "student": "the student",
    "teacher": "the teacher",
    "teacher_again": "the teacher asked again",
}
