"""Asks base, student and teacher, one model in memory at a time, through engines that the doors make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from distill import console
from distill.comparing import NAMES
from distill.comparing.found import Found, Prompt
from distill.console import Progress
from distill.engine import Outcome
from distill.engine.drive import Engine
from distill.errors import DistillError
from distill.metrics import Answered, Model, ModelMetric, Scores, TextMetric
from distill.providers import Provider
from distill.types import Completion, Failure, Flow, Request, Sampling

if TYPE_CHECKING:
    from distill.student.inprocess import InProcess

NO_WEIGHTS = "the teacher gives neither weights nor log-probabilities, so it has no value here"


class Engines(Protocol):
    """Makes the engine of one phase; the doors keep them for the account of requests."""

    def __call__(self, providers: Mapping[str, Provider], *, progress: Progress, local: bool) -> Engine:
        """`local`: the model runs in this process, costs nothing, and wants at least 32 requests in flight."""


def _answer(request: Request) -> Flow[Answered | None]:
    answer: Completion | Failure = yield request
    if isinstance(answer, Failure):
        return None
    tokens = answer.usage.completion_tokens if answer.usage is not None else None
    return Answered(answer.text.strip(), answer.finish, tokens)


def _probe(role: Model, prompts: Sequence[Prompt]) -> Flow[float | None]:
    """How probable the model finds the first answer that is not empty; the metric's own question, so asked once."""
    for prompt in prompts:
        if prompt.reference.text:
            answer = yield Request(
                role=role, messages=prompt.messages, kind="likelihood", continuation=prompt.reference.text
            )
            return None if isinstance(answer, Failure) else float(answer.loglikelihood)
    return None


def ask_teacher_again(found: Found, engine: Engines, teachers: Mapping[str, Provider], sampling: Sampling) -> None:
    """Have whoever gave a prompt's first answer give a second one, and write it down in `found`."""
    first = next(iter(teachers))
    names = {prompt.id: f"teacher:{prompt.teacher}" for prompt in found.prompts}
    flows = [_named(prompt, _answer, _question("teacher", prompt, sampling, prompt.again)) for prompt in found.prompts]
    with console.progress("asking the teacher again", len(flows)) as bar:
        asking = engine(teachers, progress=bar, local=False)
        outcomes = asking.run(flows, choose=lambda id, role: names[id] if names[id] in teachers else first)
    _take_answers(found, "teacher_again", outcomes)


def ask_here(
    found: Found, engine: Engines, student: Path, metrics: Sequence[TextMetric | ModelMetric], sampling: Sampling
) -> None:
    """Have base and student answer, be asked for likelihoods, and be shown to be two models."""
    from distill.student.inprocess import trained_student, untrained_base

    loads: dict[Model, Callable[..., InProcess]] = {"base": untrained_base, "student": trained_student}
    seen = [
        _ask_model(found, role, partial(load, student), engine=engine, metrics=metrics, sampling=sampling)
        for role, load in loads.items()
    ]
    if seen[0] is not None and seen[0] == seen[1]:
        raise DistillError(
            "base and student give the teacher's answer the very same probability, so they are one model: "
            "the adapter changes nothing; check train.learning_rate and train again"
        )


def ask_teacher_weights(
    found: Found, engine: Engines, metrics: Sequence[TextMetric | ModelMetric], weights: str | None
) -> None:
    """Ask the teacher what needs its weights, where they are at hand; else note that these numbers are absent."""
    wanting = [metric for metric in metrics if metric.scope == "model" and "teacher" in metric.models]
    if wanting and weights is not None:
        from distill.student.inprocess import local_model

        load = partial(local_model, weights, name="teacher")
        _ask_model(found, "teacher", load, engine=engine, metrics=wanting, sampling=None)
    elif wanting:
        measures = [measure for metric in wanting for measure in metric.measures]
        found.metric_notes |= {measure.name: f"absent: {NO_WEIGHTS}" for measure in measures}
        found.notes.append(f"{', '.join(measure.title for measure in measures)}: {NO_WEIGHTS}")


def _ask_model(
    found: Found,
    role: Model,
    load: Callable[..., InProcess],
    *,
    engine: Engines,
    metrics: Sequence[TextMetric | ModelMetric],
    sampling: Sampling | None,
) -> float | None:
    """Ask a model of this process all that is wanted of it, answers only with a `sampling`; returns its probe."""
    asked = found.prompts if sampling is not None else []
    answers = [_named(prompt, _answer, _question(role, prompt, sampling)) for prompt in asked]
    scores = [
        _named(prompt, metric.score, prompt.messages, role, prompt.reference)
        for metric in metrics
        if metric.scope == "model" and role in metric.models
        for prompt in found.prompts
    ]
    flows: list[_Named] = [*answers, *scores, ("probe", partial(_probe, role, found.prompts))]
    with console.progress(f"asking {NAMES[role]}", len(flows)) as bar:
        progress = _Live(bar)
        provider = load(watch=progress.watch)
        try:
            outcomes = engine({role: provider}, progress=progress, local=True).run(flows)
        finally:
            provider.release()
    if sampling is not None:
        _take_answers(found, role, outcomes[: len(answers)])
    _take_scores(found, role, outcomes[len(answers) : -1])
    probe: float | None = outcomes[-1].value
    return probe


def _question(role: str, prompt: Prompt, sampling: Sampling | None, replica: int = 0) -> Request:
    return Request(role=role, messages=prompt.messages, sampling=sampling or Sampling(), replica=replica)


_Named: TypeAlias = tuple[str, Callable[[], Flow[Any]]]


def _named(prompt: Prompt, make: Callable[..., Flow[Any]], *arguments: Any) -> _Named:
    return prompt.id, partial(make, *arguments)


def _take_answers(found: Found, model: Model, outcomes: Sequence[Outcome[Answered | None]]) -> None:
    found.answers[model] = {i: outcome.value for i, outcome in enumerate(outcomes) if outcome.value is not None}
    lacking = [outcome for outcome in outcomes if outcome.value is None]
    if lacking:
        found.missing[model] = len(lacking)
        found.notes.append(
            f"{NAMES[model]} has no answer to {len(lacking)} of {len(outcomes)} prompts ({_reasons(lacking)}); "
            "each number rests on the prompts that have what it needs"
        )


def _take_scores(found: Found, model: Model, outcomes: Sequence[Outcome[Scores]]) -> None:
    for number, outcome in enumerate(outcomes):
        found.add(model, number % len(found.prompts), outcome.value or {})
    lacking = [outcome for outcome in outcomes if outcome.failures]
    if lacking:
        found.notes.append(
            f"{NAMES[model]} gave no likelihood for {len(lacking)} of {len(outcomes)} answers ({_reasons(lacking)})"
        )


def _reasons(outcomes: Iterable[Outcome[Any]]) -> str:
    reasons = Counter(outcome.failures[-1].reason if outcome.failures else "unknown" for outcome in outcomes)
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())


class _Live:
    """Joins what the engine has in the journal with what the running batch has got so far."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._kept, self._running = 0.0, 0
        self._total: float | None = None

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self._kept, self._total = done, total
        self._show(note)

    def watch(self, running: int, note: str) -> None:
        self._running = running
        self._show(note)

    def _show(self, note: str) -> None:
        self._progress.update(self._kept + self._running, self._total, note)
