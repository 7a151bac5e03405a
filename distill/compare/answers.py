"""Generates the answers of base, student and teacher to the held-out prompts, one local model in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from distill.compare.metrics import ModelAnswer, ModelMetric, Scores, TextMetric
from distill.compare.metrics.likelihood import Likelihood
from distill.compare.results import NAMES, ModelReplies, Prompt, shared_prompts
from distill.compare.token_nll import spans
from distill.core import console
from distill.core.console import Progress
from distill.engine import Outcome
from distill.engine.flows import Runs
from distill.engine.providers import Provider
from distill.errors import DistillError
from distill.text.thinking import Handling, split_answer
from distill.types import MODELS, Completion, Failure, Flow, Message, Model, Request, Sampling

if TYPE_CHECKING:
    from distill.models.in_process import InProcess


NO_WEIGHTS = "the teacher gives neither weights nor log-probabilities, so it has no value here"
NO_STUDENT = "neither base nor student is a model at hand here"

_NamedFlow: TypeAlias = tuple[str, Callable[[], Flow[Any]]]


class Engines(Protocol):
    """Makes the engine of one phase; the caller keeps all engines to account for their requests."""

    def __call__(self, providers: Mapping[str, Provider], *, progress: Progress, local: bool) -> Runs:
        """`local`: the model runs in this process, costs nothing, and needs 32 requests in flight for its batches."""


def answer_to(
    question: Request, later: tuple[str, ...] = (), *, thoughts: Handling | None = None
) -> Flow[ModelAnswer | None]:
    """A model's answer to the last of the user's turns, after its own answers to those before; `None` on failure.

    With `thoughts`, they are treated as in a session, and an answer that was withheld or ends within them is none.
    """
    earlier: list[str] = []
    for turn in later:
        reply: Completion | Failure = yield question
        if isinstance(reply, Failure):
            return None
        if (text := _text(reply, question, thoughts)) is None:
            return None
        earlier.append(text)
        more = (Message("assistant", earlier[-1]), Message("user", turn))
        question = replace(question, messages=(*question.messages, *more))
    answer: Completion | Failure = yield question
    if isinstance(answer, Failure):
        return None
    if (text := _text(answer, question, thoughts)) is None:
        return None
    tokens = answer.usage.completion_tokens if answer.usage is not None else None
    return ModelAnswer(text, answer.finish, tokens, tuple(earlier))


def _text(answer: Completion, question: Request, thoughts: Handling | None) -> str | None:
    """An answer's text; `None` where it would make no session, but an empty one is an answer."""
    if thoughts is None:
        return answer.text.strip()
    reply = split_answer(answer, thoughts, question.messages)
    if isinstance(reply, Failure):
        return "" if reply.reason == "empty" else None
    return reply.answer


def _likelihood(role: Model, messages: tuple[Message, ...], reference: ModelAnswer) -> Flow[Completion | None]:
    """The likelihood of a teacher's answer; the same request as the metric's, so sent once."""
    answer: Completion | Failure = yield Request(
        role=role, messages=messages, kind="likelihood", continuation=reference.text
    )
    return None if isinstance(answer, Failure) else answer


def ask_endpoint(
    prompts: Sequence[Prompt],
    model: Model,
    engine: Engines,
    providers: Mapping[str, Provider],
    sampling: Sampling,
    *,
    replica: int | None = 0,
    first_answers: Mapping[int, ModelAnswer] | None = None,
    thoughts: Handling | None = None,
) -> ModelReplies:
    """`first_answers`, and a model's answers from its endpoints to the other prompts.

    A prompt goes to the teacher that gave its first answer, where that is among the providers, else to the first
    provider. `replica` is the number of the sample; `None` takes each prompt's `again`.
    """
    indices = [index for index in range(len(prompts)) if index not in (first_answers or {})]
    first = next(iter(providers))
    names = {prompt.id: f"teacher:{prompt.teacher}" for prompt in prompts}
    role = "teacher" if model == "teacher_again" else model
    flows = [
        _answer_flow(prompts[index], role, sampling, prompts[index].again if replica is None else replica, thoughts)
        for index in indices
    ]
    title = "the teacher again" if model == "teacher_again" else NAMES[model]
    with console.progress(f"asking {title}", len(flows)) as bar:
        running = engine(providers, progress=bar, local=False)
        outcomes = running.run(flows, choose=lambda id, role: names[id] if names[id] in providers else first)
    replies = _answers(model, indices, outcomes)
    return replace(replies, answers=dict(sorted({**(first_answers or {}), **(replies.answers or {})}.items())))


def ask_here(
    prompts: Sequence[Prompt],
    references: Mapping[int, ModelAnswer],
    engine: Engines,
    student: Path,
    metrics: Sequence[TextMetric | ModelMetric],
    sampling: Sampling,
    answering: Collection[Model] = MODELS[:2],
) -> list[ModelReplies]:
    """Answers and likelihoods of base and student; only likelihoods for a model that is not in `answering`.

    Raises `DistillError` where both give the teacher's answer the same probability.
    """
    from distill.models.in_process import trained_student, untrained_base

    loads: dict[Model, Callable[..., InProcess]] = {"base": untrained_base, "student": trained_student}
    replies = [
        _ask_model(
            prompts,
            references,
            model,
            partial(load, student),
            engine,
            metrics,
            sampling if model in answering else None,
        )
        for model, load in loads.items()
    ]
    if replies[0].probe is not None and replies[0].probe == replies[1].probe:
        raise DistillError(
            "base and student give the teacher's answer the very same probability, so they are one model: "
            "the adapter changes nothing; check train.learning_rate and train again"
        )
    return replies


def ask_teacher_weights(
    prompts: Sequence[Prompt],
    references: Mapping[int, ModelAnswer],
    engine: Engines,
    metrics: Sequence[TextMetric | ModelMetric],
    weights: str,
) -> list[ModelReplies]:
    """Likelihoods under the teacher's weights, for the metrics that need them; empty where none does."""
    from distill.models.in_process import local_model

    wanting = [metric for metric in metrics if metric.scope == "model" and "teacher" in metric.models]
    load = partial(local_model, weights, name="teacher")
    return [_ask_model(prompts, references, "teacher", load, engine, wanting, None)] if wanting else []


def absent_measures(
    metrics: Sequence[TextMetric | ModelMetric], models_here: Collection[Model], teacher_weights: str | None
) -> dict[str, str]:
    """The measures that have no value because a model's weights are missing: the reason, by name of the measure."""
    why = NO_WEIGHTS if models_here else NO_STUDENT
    return {
        measure.name: why
        for metric in metrics
        if metric.scope == "model" and (not models_here or ("teacher" in metric.models and teacher_weights is None))
        for measure in metric.measures
    }


def _ask_model(
    prompts: Sequence[Prompt],
    references: Mapping[int, ModelAnswer],
    model: Model,
    load: Callable[..., InProcess],
    engine: Engines,
    metrics: Sequence[TextMetric | ModelMetric],
    sampling: Sampling | None,
) -> ModelReplies:
    """Answers (with a `sampling`), likelihoods of the `references`, and the probe, of a model in this process."""
    answers = [_answer_flow(prompt, model, sampling) for prompt in prompts] if sampling is not None else []
    indices = [index for index in shared_prompts(prompts) if index in references]
    before = {index: prompts[index].with_turns(references[index]) for index in indices}
    scores: list[_NamedFlow] = [
        (prompts[index].id, partial(metric.score, before[index], model, references[index]))
        for metric in metrics
        if metric.scope == "model" and model in metric.models
        for index in indices
    ]
    has_spans = model in MODELS[:2] and any(isinstance(metric, Likelihood) for metric in metrics)
    with_text = [index for index in indices if references[index].text][: None if has_spans else 1]
    likelihoods: list[_NamedFlow] = [
        (prompts[index].id, partial(_likelihood, model, before[index], references[index])) for index in with_text
    ]
    outcomes = _run_here(model, load, engine, [*answers, *scores, *likelihoods])
    rest = outcomes[len(answers) :]
    replies = _answers(model, range(len(prompts)), outcomes[: len(answers)]) if answers else ModelReplies(model=model)
    values, note = _likelihoods(model, indices, rest[: len(scores)])
    values_of = zip(with_text, (outcome.value for outcome in rest[len(scores) :]), strict=True)
    completions = {index: completion for index, completion in values_of if completion is not None}
    spans_of = {index: spans(one.raw, references[index].text) for index, one in completions.items() if has_spans}
    return replace(
        replies,
        scores=values,
        spans={index: each for index, each in spans_of.items() if each is not None},
        notes=(*replies.notes, *note),
        probe=next((one.loglikelihood for one in completions.values()), None),
    )


def _run_here(
    model: Model, load: Callable[..., InProcess], engine: Engines, flows: Sequence[_NamedFlow]
) -> list[Outcome[Any]]:
    """Load a model, run the flows on it, and release it."""
    with console.progress(f"asking {NAMES[model]}", len(flows)) as bar:
        progress = _Live(bar)
        provider = load(watch=progress.watch)
        try:
            return list(engine({model: provider}, progress=progress, local=True).run(flows))
        finally:
            provider.release()


def _answer_flow(
    prompt: Prompt, role: str, sampling: Sampling, replica: int = 0, thoughts: Handling | None = None
) -> _NamedFlow:
    request = Request(role=role, messages=prompt.messages, sampling=sampling, replica=replica)
    return prompt.id, partial(answer_to, request, prompt.later, thoughts=thoughts)


def _answers(model: Model, indices: Sequence[int], outcomes: Sequence[Outcome[ModelAnswer | None]]) -> ModelReplies:
    answers = {index: one.value for index, one in zip(indices, outcomes, strict=True) if one.value is not None}
    without = [outcome for outcome in outcomes if outcome.value is None]
    if not without:
        return ModelReplies(model=model, answers=answers)
    note = (
        f"{NAMES[model]} has no answer to {len(without)} of {len(outcomes)} prompts ({_reasons(without)}); "
        "each number rests on the prompts that have what it needs"
    )
    return ModelReplies(model=model, answers=answers, missing=len(without), notes=(note,))


def _likelihoods(
    model: Model, indices: Sequence[int], outcomes: Sequence[Outcome[Scores]]
) -> tuple[dict[int, dict[str, float]], list[str]]:
    """The scores by prompt, and a note on the requests that failed."""
    scores: dict[int, dict[str, float]] = {}
    for number, outcome in enumerate(outcomes):
        scores.setdefault(indices[number % len(indices)], {}).update(outcome.value or {})
    failures = [outcome for outcome in outcomes if outcome.failures]
    note = f"{NAMES[model]} gave no likelihood for {len(failures)} of {len(outcomes)} answers ({_reasons(failures)})"
    return scores, [note] if failures else []


def _reasons(outcomes: Iterable[Outcome[Any]]) -> str:
    reasons = Counter(outcome.failures[-1].reason if outcome.failures else "unknown" for outcome in outcomes)
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())


class _Live:
    """Adds the progress within the running batch to the engine's."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._finished, self._running, self._shown = 0.0, 0, 0.0
        self._total: float | None = None

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self._finished, self._total = done, total
        self._show("" if self._running else note)  # the engine sees no answer before the batch ends

    def watch(self, running: int, note: str) -> None:
        self._running = running
        self._show(note)

    def _show(self, note: str) -> None:
        self._shown = max(self._shown, self._finished + self._running)  # a batch has ended before its flows have
        self._progress.update(self._shown, self._total, note)
