"""Generates the answers of base, student and teacher to the held-out prompts, one local model in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from distill.compare.metrics import Model, ModelAnswer, ModelMetric, Scores, TextMetric
from distill.compare.metrics.likelihood import Likelihood
from distill.compare.results import MODELS, NAMES, ComparisonResults, Prompt
from distill.compare.token_nll import record_surprise, surprise
from distill.core import console
from distill.core.console import Progress
from distill.engine import Outcome
from distill.engine.flows import Runs
from distill.engine.providers import Provider
from distill.errors import DistillError
from distill.types import Completion, Failure, Flow, Message, Request, Sampling

if TYPE_CHECKING:
    from distill.models.in_process import InProcess


NO_WEIGHTS = "the teacher gives neither weights nor log-probabilities, so it has no value here"


class Engines(Protocol):
    """Makes the engine of one phase; the caller keeps them to account for their requests."""

    def __call__(self, providers: Mapping[str, Provider], *, progress: Progress, local: bool) -> Runs:
        """`local`: the model runs in this process, costs nothing, and wants at least 32 requests in flight."""


def answered(question: Request, later: tuple[str, ...] = ()) -> Flow[ModelAnswer | None]:
    """A model's answer to a prompt; of several turns, to the last, after its own answers to those before."""
    earlier: list[str] = []
    for then in later:
        reply: Completion | Failure = yield question
        if isinstance(reply, Failure):
            return None
        earlier.append(reply.text.strip())
        more = (Message("assistant", earlier[-1]), Message("user", then))
        question = replace(question, messages=(*question.messages, *more))
    answer: Completion | Failure = yield question
    if isinstance(answer, Failure):
        return None
    tokens = answer.usage.completion_tokens if answer.usage is not None else None
    return ModelAnswer(answer.text.strip(), answer.finish, tokens, tuple(earlier))


def _probe(role: Model, asked: Sequence[Asked]) -> Flow[float | None]:
    """How probable the model finds the first answer that is not empty; the metric's own question, so asked once."""
    for _, messages, reference in asked:
        if reference.text:
            answer = yield Request(role=role, messages=messages, kind="likelihood", continuation=reference.text)
            return None if isinstance(answer, Failure) else float(answer.loglikelihood)
    return None


Asked: TypeAlias = tuple[int, tuple[Message, ...], ModelAnswer]
"""A prompt's index, the conversation before the teacher's answer, and that answer."""


def _with_reference(results: ComparisonResults) -> list[Asked]:
    """The prompts that the teacher has answered, of those that all metrics look at."""
    known = ((index, results.reference(index)) for index in results.shared)
    return [(index, results.prompts[index].with_turns(one), one) for index, one in known if one is not None]


def ask_teacher(
    results: ComparisonResults, engine: Engines, teachers: Mapping[str, Provider], sampling: Sampling
) -> None:
    """Have the teacher answer the prompts that came without its answer: the first of several teachers."""
    lacking = [index for index in range(len(results.prompts)) if results.reference(index) is None]
    if lacking:
        _ask_remote(results, engine, "teacher", teachers, sampling, lacking, replica=0)


def ask_teacher_again(
    results: ComparisonResults, engine: Engines, teachers: Mapping[str, Provider], sampling: Sampling
) -> None:
    """Ask the teacher that answered each prompt for a second sample; store it in `results`."""
    _ask_remote(results, engine, "teacher_again", teachers, sampling, range(len(results.prompts)))


def ask_endpoint(
    results: ComparisonResults, engine: Engines, model: Model, provider: Provider, sampling: Sampling
) -> None:
    """Have an endpoint answer in the place of the base or the student."""
    _ask_remote(results, engine, model, {model: provider}, sampling, range(len(results.prompts)), replica=0)


def _ask_remote(
    results: ComparisonResults,
    engine: Engines,
    model: Model,
    providers: Mapping[str, Provider],
    sampling: Sampling,
    places: Sequence[int],
    *,
    replica: int | None = None,
) -> None:
    """Ask these prompts of whoever of the providers gave their first answer, else of the first of them."""
    first = next(iter(providers))
    prompts = [results.prompts[place] for place in places]
    names = {prompt.id: f"teacher:{prompt.teacher}" for prompt in prompts}
    role = "teacher" if model in ("teacher", "teacher_again") else model
    flows = [
        _named(prompt, answered, _question(role, prompt, sampling, prompt.again if replica is None else replica),
               prompt.later)
        for prompt in prompts
    ]  # fmt: skip
    whom = "the teacher again" if model == "teacher_again" else NAMES[model]
    with console.progress(f"asking {whom}", len(flows)) as bar:
        asking = engine(providers, progress=bar, local=False)
        outcomes = asking.run(flows, choose=lambda id, role: names[id] if names[id] in providers else first)
    _take_answers(results, model, places, outcomes)


def ask_here(
    results: ComparisonResults,
    engine: Engines,
    student: Path,
    metrics: Sequence[TextMetric | ModelMetric],
    sampling: Sampling,
    answering: Collection[Model] = ("base", "student"),
) -> None:
    """Have base and student answer, be asked for likelihoods, and be shown to be two models.

    Those not in `answering` are asked for likelihoods only: their answers are known.
    """
    from distill.models.in_process import trained_student, untrained_base

    loads: dict[Model, Callable[..., InProcess]] = {"base": untrained_base, "student": trained_student}
    seen = [
        _ask_model(
            results, role, partial(load, student),
            engine=engine, metrics=metrics, sampling=sampling if role in answering else None,
        )
        for role, load in loads.items()
    ]  # fmt: skip
    if seen[0] is not None and seen[0] == seen[1]:
        raise DistillError(
            "base and student give the teacher's answer the very same probability, so they are one model: "
            "the adapter changes nothing; check train.learning_rate and train again"
        )


def ask_teacher_weights(
    results: ComparisonResults, engine: Engines, metrics: Sequence[TextMetric | ModelMetric], weights: str | None
) -> None:
    """Ask the teacher what needs its weights, where they are at hand; else note that these numbers are absent."""
    wanting = [metric for metric in metrics if metric.scope == "model" and "teacher" in metric.models]
    if wanting and weights is not None:
        from distill.models.in_process import local_model

        load = partial(local_model, weights, name="teacher")
        _ask_model(results, "teacher", load, engine=engine, metrics=wanting, sampling=None)
    elif wanting:
        note_absent(results, wanting, NO_WEIGHTS)


def note_absent(results: ComparisonResults, metrics: Sequence[TextMetric | ModelMetric], why: str) -> None:
    """Say of the measures that need a model's weights why they have no value."""
    measures = [measure for metric in metrics if metric.scope == "model" for measure in metric.measures]
    if measures:
        results.metric_notes |= {measure.name: f"absent: {why}" for measure in measures}
        results.notes.append(f"{', '.join(measure.title for measure in measures)}: {why}")


def _ask_model(
    results: ComparisonResults,
    role: Model,
    load: Callable[..., InProcess],
    *,
    engine: Engines,
    metrics: Sequence[TextMetric | ModelMetric],
    sampling: Sampling | None,
) -> float | None:
    """Ask a model of this process all that is wanted of it, answers only with a `sampling`; returns its probe."""
    prompts = results.prompts if sampling is not None else []
    answers = [_named(prompt, answered, _question(role, prompt, sampling), prompt.later) for prompt in prompts]
    asked = _with_reference(results)
    scores = [
        _named(results.prompts[index], metric.score, messages, role, reference)
        for metric in metrics
        if metric.scope == "model" and role in metric.models
        for index, messages, reference in asked
    ]
    tokens = [
        _named(results.prompts[index], surprise, role, messages, reference)
        for index, messages, reference in asked
        if any(isinstance(metric, Likelihood) and role in MODELS[:2] for metric in metrics)
    ]
    flows: list[_Named] = [*answers, *scores, *tokens, ("probe", partial(_probe, role, asked))]
    with console.progress(f"asking {NAMES[role]}", len(flows)) as bar:
        progress = _Live(bar)
        provider = load(watch=progress.watch)
        try:
            outcomes = engine({role: provider}, progress=progress, local=True).run(flows)
        finally:
            provider.release()
    if sampling is not None:
        _take_answers(results, role, range(len(prompts)), outcomes[: len(answers)])
    places, known = [index for index, _, _ in asked], len(answers) + len(scores)
    _take_scores(results, role, places, outcomes[len(answers) : known])
    for index, outcome in zip(places, outcomes[known:-1], strict=False):
        record_surprise(results, role, index, outcome.value)
    probe: float | None = outcomes[-1].value
    return probe


def _question(role: str, prompt: Prompt, sampling: Sampling | None, replica: int = 0) -> Request:
    return Request(role=role, messages=prompt.messages, sampling=sampling or Sampling(), replica=replica)


_Named: TypeAlias = tuple[str, Callable[[], Flow[Any]]]


def _named(prompt: Prompt, make: Callable[..., Flow[Any]], *arguments: Any) -> _Named:
    return prompt.id, partial(make, *arguments)


def _take_answers(
    results: ComparisonResults, model: Model, places: Sequence[int], outcomes: Sequence[Outcome[ModelAnswer | None]]
) -> None:
    known = {place: one.value for place, one in zip(places, outcomes, strict=True) if one.value is not None}
    results.answers[model] = dict(sorted((results.answers.get(model, {}) | known).items()))
    lacking = [outcome for outcome in outcomes if outcome.value is None]
    if lacking:
        results.missing[model] = len(lacking)
        results.notes.append(
            f"{NAMES[model]} has no answer to {len(lacking)} of {len(outcomes)} prompts ({_reasons(lacking)}); "
            "each number rests on the prompts that have what it needs"
        )


def _take_scores(
    results: ComparisonResults, model: Model, places: Sequence[int], outcomes: Sequence[Outcome[Scores]]
) -> None:
    for number, outcome in enumerate(outcomes):
        results.add(model, places[number % len(places)], outcome.value or {})
    lacking = [outcome for outcome in outcomes if outcome.failures]
    if lacking:
        results.notes.append(
            f"{NAMES[model]} gave no likelihood for {len(lacking)} of {len(outcomes)} answers ({_reasons(lacking)})"
        )


def _reasons(outcomes: Iterable[Outcome[Any]]) -> str:
    reasons = Counter(outcome.failures[-1].reason if outcome.failures else "unknown" for outcome in outcomes)
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())


class _Live:
    """Sums the engine's journalled progress and that of the running batch."""

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
