"""Generates the answers of base, student and teacher to the held-out prompts, one local model in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.compare.local_model import Engines, LocalModel, NamedFlow
from distill.compare.metrics import Metric, ModelAnswer, Scores
from distill.compare.metrics.likelihood import Likelihood
from distill.compare.results import NAMES, ModelReplies, Prompt, shared_prompts
from distill.compare.token_nll import spans
from distill.core import console
from distill.core.student_folder import PREVIOUS, STUDENT
from distill.core.weights import fingerprint, read_base, student_fingerprint
from distill.engine import Outcome
from distill.engine.providers import Provider
from distill.errors import DistillError, ModelError
from distill.text.thinking import Handling, split_answer
from distill.types import Completion, Failure, Flow, Message, Model, Request, Sampling

if TYPE_CHECKING:
    from distill.models.in_process import InProcess


LEARNERS: tuple[Model, ...] = ("base", "student")
"""The models whose weights training leaves here."""
NO_WEIGHTS = "the teacher gives neither weights nor log-probabilities, so it has no value here"
NO_STUDENT = "neither base nor student is a model at hand here"


def answer_to(
    question: Request, later: tuple[str, ...] = (), *, thoughts: Handling | None = None, more: int = 0
) -> Flow[ModelAnswer | None]:
    """A model's answer to the last of the user's turns, after its own answers to those before; `None` on failure.

    With `thoughts`, they are treated as in a session, and an answer that was withheld or ends within them is none.
    `more`: how many further samples to take of the last answer; those that fail are left out.
    """
    earlier: list[str] = []
    for turn in later:
        reply: Completion | Failure = yield question
        if isinstance(reply, Failure):
            return None
        if (text := _text(reply, question, thoughts)) is None:
            return None
        earlier.append(text)
        turns = (Message("assistant", earlier[-1]), Message("user", turn))
        question = replace(question, messages=(*question.messages, *turns))
    answer: Completion | Failure = yield question
    if isinstance(answer, Failure):
        return None
    if (text := _text(answer, question, thoughts)) is None:
        return None
    tokens = answer.usage.completion_tokens if answer.usage is not None else None
    samples = yield from samples_of(question, range(question.replica + 1, question.replica + 1 + more), thoughts)
    return ModelAnswer(text, answer.finish, tokens, tuple(earlier), (text, *samples) if more else ())


def samples_of(question: Request, replicas: Sequence[int], thoughts: Handling | None = None) -> Flow[tuple[str, ...]]:
    """The texts of further samples; those that fail are left out."""
    if not replicas:
        return ()
    replies: Sequence[Completion | Failure] = yield tuple(replace(question, replica=one) for one in replicas)
    texts = (_text(one, question, thoughts) for one in replies if isinstance(one, Completion))
    return tuple(text for text in texts if text is not None)


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
    samples: int = 1,
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
        _answer_flow(
            prompts[index], role, sampling, prompts[index].again if replica is None else replica, thoughts, samples
        )
        for index in indices
    ]
    title = "the teacher again" if model == "teacher_again" else NAMES[model]
    with console.progress(f"asking {title}", len(flows)) as bar:
        running = engine(providers, progress=bar, local=False)
        outcomes = running.run(flows, choose=lambda id, role: names[id] if names[id] in providers else first)
    replies = _answers(model, indices, outcomes)
    return replace(replies, answers=dict(sorted({**(first_answers or {}), **(replies.answers or {})}.items())))


def sample_teacher(
    prompts: Sequence[Prompt],
    replies: Sequence[ModelReplies],
    engine: Engines,
    providers: Mapping[str, Provider],
    sampling: Sampling,
    *,
    samples: int,
    thoughts: Handling,
) -> list[ModelReplies]:
    """The replies, the teacher's last ones with samples beside each answer.

    None of them is the answer itself, which a strategy may have picked, or the one when asked again.
    """
    last = max(place for place, one in enumerate(replies) if one.model == "teacher")
    answers = replies[last].answers or {}
    indices = [index for index in shared_prompts(prompts) if index in answers]
    names = {prompts[index].id: f"teacher:{prompts[index].teacher}" for index in indices}
    first = next(iter(providers))
    flows: list[NamedFlow] = []
    for index in indices:
        messages = prompts[index].with_turns(answers[index])
        question = Request(role="teacher", messages=messages, sampling=sampling)
        flows.append((prompts[index].id, partial(samples_of, question, range(2, 2 + samples), thoughts)))
    with console.progress("sampling the teacher", len(flows)) as bar:
        running = engine(providers, progress=bar, local=False)
        outcomes = running.run(flows, choose=lambda id, role: names[id] if names[id] in providers else first)
    drawn = {index: one.value or () for index, one in zip(indices, outcomes, strict=True)}
    sampled = {index: replace(answer, samples=drawn.get(index, ())) for index, answer in answers.items()}
    return [*replies[:last], replace(replies[last], answers=sampled), *replies[last + 1 :]]


def ask_here(
    prompts: Sequence[Prompt],
    references: Mapping[int, ModelAnswer],
    engine: Engines,
    student: Path,
    metrics: Sequence[Metric],
    sampling: Sampling,
    answering: Collection[Model] = LEARNERS,
    teacher: InProcess | None = None,
) -> list[ModelReplies]:
    """Answers and likelihoods of base and student; only likelihoods for a model that is not in `answering`.

    Where the student continued another, that one answers as `previous`. Beside the `teacher`, metrics of pairs are
    computed too. Raises `DistillError` where base and student give the teacher's answer the same probability.
    """
    from distill.models.in_process import trained_student, untrained_base

    before, notes = _previous(student)
    loads: dict[Model, Callable[..., InProcess]] = {"base": partial(untrained_base, student)}
    if before is not None:
        loads["previous"] = partial(trained_student, before)
    loads["student"] = partial(trained_student, student)
    replies = []
    for model, load in loads.items():
        own = sampling if model in {*answering, "previous"} else None
        replies.append(_ask_model(prompts, references, model, load, engine, metrics, own, teacher))
    if replies[0].probe is not None and replies[0].probe == replies[-1].probe:
        raise DistillError(
            "base and student give the teacher's answer the very same probability, so they are one model: "
            "the adapter changes nothing; check train.learning_rate and train again"
        )
    return [replace(replies[0], notes=(*notes, *replies[0].notes)), *replies[1:], *_limits(replies, metrics)]


def _previous(student: Path) -> tuple[Path | None, list[str]]:
    """The folder of the student that a student continued, and a note where that one is not at hand."""
    previous = read_base(student).get("previous")
    if previous is None:
        return None, []
    run = Path(previous["run"])
    for folder in (run / STUDENT, run / PREVIOUS):
        with suppress(ModelError):
            if student_fingerprint(folder) == previous["fingerprint"]:
                return folder, []
    return None, [f"the student before is not compared: {run} no longer has the one that was continued"]


def _limits(replies: Sequence[ModelReplies], metrics: Sequence[Metric]) -> list[ModelReplies]:
    """The teacher's own numbers in metrics of pairs, on the prompts on which the others have them."""
    known = {name: value for metric in metrics if metric.scope == "pair" for name, value in metric.teacher.items()}
    scores: dict[int, dict[str, float]] = {}
    for reply in replies:
        for index, values in reply.scores.items():
            scores.setdefault(index, {}).update({name: known[name] for name in values if name in known})
    return [ModelReplies(model="teacher", scores=scores)] if known else []


def ask_teacher_weights(
    prompts: Sequence[Prompt],
    references: Mapping[int, ModelAnswer],
    engine: Engines,
    metrics: Sequence[Metric],
    teacher: InProcess,
) -> list[ModelReplies]:
    """Likelihoods under the teacher's weights, for the metrics that need them; empty where none does."""
    wanting = [metric for metric in metrics if metric.scope == "model" and "teacher" in metric.models]
    return [_ask_model(prompts, references, "teacher", teacher.watched, engine, wanting, None)] if wanting else []


def absent_measures(
    metrics: Sequence[Metric], models_here: Collection[Model], teacher_weights: str | None, obstacle: str | None
) -> dict[str, str]:
    """The measures that have no value because a model's weights are missing: the reason, by name of the measure.

    `obstacle` is why those of pairs have none.
    """
    lacking = {"text": None, "model": NO_WEIGHTS if teacher_weights is None else None, "pair": obstacle}
    reasons: dict[str, str] = {}
    for metric in metrics:
        why = lacking[metric.scope] if metric.scope != "model" or "teacher" in metric.models else None
        if metric.scope != "text" and not models_here:
            why = NO_STUDENT
        if why is not None:
            reasons |= {measure.name: why for measure in metric.measures}
    return reasons


def pair_obstacle(teacher_weights: str | None, student: Path) -> str | None:
    """Why the teacher's probabilities cannot be set beside the student's; None where they can."""
    if teacher_weights is None:
        return NO_WEIGHTS
    if fingerprint(teacher_weights) == read_base(student)["fingerprint"]:
        return None
    from distill.models import loading
    from distill.models.tokenizer_identity import difference

    tokenizers = [loading.load_tokenizer(folder) for folder in (loading.materialise(teacher_weights), student)]
    other = difference(*tokenizers)
    return f"the teacher's tokenizer is not the student's ({other}), so it has no value here" if other else None


def _ask_model(
    prompts: Sequence[Prompt],
    references: Mapping[int, ModelAnswer],
    model: Model,
    load: Callable[..., InProcess],
    engine: Engines,
    metrics: Sequence[Metric],
    sampling: Sampling | None,
    teacher: InProcess | None = None,
) -> ModelReplies:
    """Answers (with a `sampling`), scores on the `references`, and the probe, of a model in this process.

    Beside a `teacher` the pass of both comes before the likelihoods, which it spares.
    """
    role: Model = "student" if model == "previous" else model  # as its own run asked it, whose journal may be reused
    samples = most_samples(metrics)
    flows = (_answer_flow(prompt, role, sampling, samples=samples) for prompt in prompts if sampling is not None)
    answers = list(flows)
    indices = [index for index in shared_prompts(prompts) if index in references]
    before = {index: prompts[index].with_turns(references[index]) for index in indices}
    scores: list[NamedFlow] = [
        (prompts[index].id, partial(metric.score, before[index], role, references[index]))
        for metric in metrics
        if metric.scope == "model" and model in metric.models
        for index in indices
    ]
    has_spans = model in LEARNERS and any(isinstance(metric, Likelihood) for metric in metrics)
    with_text = [index for index in indices if references[index].text][: None if has_spans else 1]
    likelihoods: list[NamedFlow] = [
        (prompts[index].id, partial(_likelihood, role, before[index], references[index])) for index in with_text
    ]
    later = [*scores, *likelihoods]
    with LocalModel(model, role, load, engine) as local:
        outcomes = local.ask([*answers, *(later if teacher is None else ())])
        replies = ModelReplies(model=model)
        if answers:
            replies = _answers(model, range(len(prompts)), outcomes[: len(answers)])
        rest = outcomes[len(answers) :]
        if teacher is not None:
            pairs = _pair_flows(prompts, before, references, replies.answers or {}, model, metrics)
            replies = _with_scores(replies, indices, local.ask(pairs, teacher))
            rest = local.ask(later)
    values_of = zip(with_text, (outcome.value for outcome in rest[len(scores) :]), strict=True)
    completions = {index: completion for index, completion in values_of if completion is not None}
    spans_of = {index: spans(one.raw, references[index].text) for index, one in completions.items() if has_spans}
    return replace(
        _with_scores(replies, indices, rest[: len(scores)]),
        spans={index: each for index, each in spans_of.items() if each is not None},
        probe=next((one.loglikelihood for one in completions.values()), None),
    )


def _pair_flows(
    prompts: Sequence[Prompt],
    before: Mapping[int, tuple[Message, ...]],
    references: Mapping[int, ModelAnswer],
    own: Mapping[int, ModelAnswer],
    model: Model,
    metrics: Sequence[Metric],
) -> list[NamedFlow]:
    """Flows of the metrics of pairs, on the references and on the model's own answers."""
    return [
        (
            prompts[index].id,
            partial(
                metric.score,
                (messages, references[index].text),
                (prompts[index].with_turns(own[index]), own[index].text) if index in own else None,
            ),
        )
        for metric in metrics
        if metric.scope == "pair" and model in metric.models
        for index, messages in before.items()
    ]


def _answer_flow(
    prompt: Prompt,
    role: str,
    sampling: Sampling,
    replica: int = 0,
    thoughts: Handling | None = None,
    samples: int = 1,
) -> NamedFlow:
    request = Request(role=role, messages=prompt.messages, sampling=sampling, replica=replica)
    more = samples - 1 if prompt.asked_by is None else 0
    return prompt.id, partial(answer_to, request, prompt.later, thoughts=thoughts, more=more)


def most_samples(metrics: Iterable[Any]) -> int:
    """How many samples of each answer the metrics need."""
    return max((getattr(metric, "samples", 1) for metric in metrics), default=1)


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


def _with_scores(replies: ModelReplies, indices: Sequence[int], outcomes: Sequence[Outcome[Scores]]) -> ModelReplies:
    """The replies with more scores by prompt, and a note on the requests that failed."""
    scores: dict[int, dict[str, float]] = {index: dict(values) for index, values in replies.scores.items()}
    for number, outcome in enumerate(outcomes):
        scores.setdefault(indices[number % len(indices)], {}).update(outcome.value or {})
    failures = [outcome for outcome in outcomes if outcome.failures]
    if not failures:
        return replace(replies, scores=scores)
    name, count = NAMES[replies.model], f"{len(failures)} of {len(outcomes)}"
    note = f"{name} gave no likelihood for {count} answers ({_reasons(failures)})"
    return replace(replies, scores=scores, notes=(*replies.notes, note))


def _reasons(outcomes: Iterable[Outcome[Any]]) -> str:
    reasons = Counter(outcome.failures[-1].reason if outcome.failures else "unknown" for outcome in outcomes)
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
