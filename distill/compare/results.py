"""Prompts of a comparison, and every model's answers and scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from distill.compare.metrics import Measure, Metric, ModelAnswer, Sample, Scores
from distill.text.references import carried
from distill.types import MODELS, Message, Model

EVERY = "all"
"""Category of prompts that declare none."""
NAMES: dict[Model, str] = {
    "base": "the base",
    "previous": "the student before",
    "student": "the student",
    "teacher": "the teacher",
    "teacher_again": "the teacher asked again",
}
JUDGED: tuple[Model, ...] = ("base", "student", "teacher")
"""Models whose answers a judge reads."""

Spans: TypeAlias = tuple[list[int], list[float]]
"""Widths of tokens in characters, all 1 or more, which add up to the answer; and the nats of each."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out prompt, with the teacher's first answer where it is known beforehand."""

    id: str
    messages: tuple[Message, ...]
    reference: ModelAnswer | None = None
    teacher: str | None = None
    """Name of the teacher that gave the reference."""
    again: int = 1
    """Replica of the teacher's second answer; differs from the first answer's, of which best_of draws several."""
    category: str = EVERY
    later: tuple[str, ...] = ()
    """The user's further turns, where the question has several."""
    solution: Mapping[str, Any] = field(default_factory=dict)
    """What the row has of `reference`, a right answer by the prompt's author, which the judge sees, and `checks`."""
    checks: tuple[Mapping[str, Any], ...] = ()
    """Instructions in it that a program can check."""
    asked_by: str | None = None
    """The metric that this prompt belongs to; `None` for prompts that all models are compared on."""

    @property
    def last_solution(self) -> Mapping[str, Any]:
        """`reference` and `checks` of the last turn, whose answer is compared."""
        return carried(self.solution, turn=-1)

    @property
    def question(self) -> str:
        """All the user's turns."""
        return "\n".join([*(message.content for message in self.messages if message.role == "user"), *self.later])

    def with_turns(self, answer: ModelAnswer) -> tuple[Message, ...]:
        """The conversation before the model's last answer: the prompt, its earlier answers and the later turns."""
        messages = list(self.messages)
        for reply, turn in zip(answer.earlier, self.later, strict=False):
            messages += [Message("assistant", reply), Message("user", turn)]
        return tuple(messages)


def shared_prompts(prompts: Sequence[Prompt]) -> list[int]:
    """Indices of the prompts that all metrics score; those that one metric brings are left out."""
    return [index for index, prompt in enumerate(prompts) if prompt.asked_by is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReplies:
    """One model's replies, by prompt index."""

    model: Model
    answers: Mapping[int, ModelAnswer] | None = None
    """`None` where only likelihoods were requested."""
    scores: Mapping[int, Scores] = field(default_factory=dict)
    """From likelihoods."""
    spans: Mapping[int, Spans] = field(default_factory=dict)
    """Per-token NLL of the teacher's answer."""
    missing: int = 0
    """Prompts without an answer."""
    notes: tuple[str, ...] = ()
    probe: float | None = None
    """Log-likelihood of the teacher's first answer that is not empty, in nats."""


@dataclass(frozen=True, slots=True)
class ComparisonResults:
    """Answers and scores by model and prompt index."""

    prompts: Sequence[Prompt]
    answers: Mapping[Model, Mapping[int, ModelAnswer]]
    scores: Mapping[Model, Mapping[int, Scores]] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    """Entries of scores.json by metrics, beside the measures."""

    @property
    def shared(self) -> list[int]:
        """Indices of the prompts that all metrics score."""
        return shared_prompts(self.prompts)

    def values(self, measure: Measure, model: Model) -> dict[int, float]:
        """A model's numbers by prompt, where it has one."""
        rows = self.scores.get(model, {})
        return {index: rows[index][measure.name] for index in sorted(rows) if measure.name in rows[index]}


def score_answers(
    prompts: Sequence[Prompt],
    replies: Iterable[ModelReplies],
    metrics: Sequence[Metric],
    folder: Path,
    seed: int = 0,
) -> ComparisonResults:
    """All answers, with scores from likelihoods and from text metrics."""
    answers: dict[Model, Mapping[int, ModelAnswer]] = {}
    scores: dict[Model, dict[int, dict[str, float]]] = {}
    tables: dict[str, Any] = {}
    for reply in replies:
        if reply.answers is not None:
            answers[reply.model] = reply.answers
        for index, values in reply.scores.items():
            _add(scores, reply.model, index, values)
    samples = [_sample(prompts, answers, model, index) for model, by_prompt in answers.items() for index in by_prompt]
    for metric in metrics:
        if metric.scope == "text":
            own = [one for one in samples if prompts[one.prompt].asked_by in (None, type(metric).__name__)]
            if (prepare := getattr(metric, "prepare", None)) is not None:
                prepare(folder, own)
            for sample in own:
                _add(scores, sample.model, sample.prompt, metric.score(sample))
            if (more := getattr(metric, "tables", None)) is not None:
                tables |= more(own, seed)
    return ComparisonResults(prompts, answers, scores, tables)


def _add(scores: dict[Model, dict[int, dict[str, float]]], model: Model, index: int, values: Scores) -> None:
    """Add a model's scores on a prompt; numbers that are not finite are left out."""
    row = scores.setdefault(model, {}).setdefault(index, {})
    row.update({name: value for name, value in values.items() if math.isfinite(value)})


def _sample(
    prompts: Sequence[Prompt], answers: Mapping[Model, Mapping[int, ModelAnswer]], model: Model, index: int
) -> Sample:
    prompt, answer = prompts[index], answers[model][index]
    reference = answers.get("teacher", {}).get(index)
    return Sample(
        prompt.with_turns(answer), model, answer, reference, prompt.category, index, prompt.checks, prompt.last_solution
    )


EXTRAS = ("surprise", "leak", "judge", "outcome", "coverage")
"""Optional entries of a prompt's line of answers.jsonl, in order."""


def row(results: ComparisonResults, index: int, extras: Mapping[str, Mapping[int, Any]]) -> dict[str, Any]:
    """A prompt's line of answers.jsonl; `extras` has the values of `EXTRAS` by prompt."""
    prompt = results.prompts[index]
    optional = {"turns": prompt.later, "reference": prompt.solution.get("reference")}
    return {
        "id": prompt.id,
        "messages": prompt.messages,
        "category": prompt.category,
        **{name: value for name, value in optional.items() if value not in (None, (), [])},
        "answers": {
            model: _answer(results.answers[model][index]) for model in MODELS if index in results.answers.get(model, {})
        },
        "scores": {model: results.scores[model][index] for model in MODELS if results.scores.get(model, {}).get(index)},
        **{name: extras[name][index] for name in EXTRAS if index in extras[name]},
    }


def _answer(answer: ModelAnswer) -> dict[str, Any]:
    optional = {name: value for name, value in (("earlier", answer.earlier), ("samples", answer.samples)) if value}
    return {"text": answer.text, "finish": answer.finish, "tokens": answer.tokens, **optional}
