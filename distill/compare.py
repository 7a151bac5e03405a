"""The compare stage: base, student and teacher on the held-out prompts, side by side, with paired intervals.

Everything is asked through the engine, so a run that was killed asks nothing twice. One model is in memory at a time:
the teacher answers every prompt once more (the ceiling) and is stopped; base and student answer, and are asked how
probable they find the teacher's answers; last, the teacher is asked that too, where its weights are at hand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from distill import console
from distill.console import Progress
from distill.embedded import read_base
from distill.engine import Outcome
from distill.engine.drive import Engine
from distill.errors import DistillError, RunFolderError
from distill.journal import Journal
from distill.metrics import Answered, Measure, Model, ModelMetric, Sample, Scores, TextMetric
from distill.providers import Provider
from distill.rows import read_sessions, write_json, write_rows
from distill.stats import LEVEL, RESAMPLES, Gap, Interval, Refused, gap_closed, mean_interval, paired_difference
from distill.types import Completion, Failure, Flow, Message, Request, Sampling, Session

if TYPE_CHECKING:
    from distill.student.inprocess import InProcess

MODELS: tuple[Model, ...] = ("base", "student", "teacher", "teacher_again")
_NAMES: dict[Model, str] = {
    "base": "the base",
    "student": "the student",
    "teacher": "the teacher",
    "teacher_again": "the teacher asked again",
}
NO_WEIGHTS = "the teacher gives neither weights nor log-probabilities, so it has no value here"


class Engines(Protocol):
    """Makes the engine of one phase; the doors keep them for the account of requests."""

    def __call__(self, providers: Mapping[str, Provider], *, progress: Progress, local: bool) -> Engine:
        """`local`: the model runs in this process, costs nothing, and wants at least 32 requests in flight."""


def compare(
    folder: Path,
    *,
    engine: Engines,
    journal: Journal,
    metrics: Sequence[TextMetric | ModelMetric],
    sampling: Sampling,
    seed: int,
    teachers: Mapping[str, Provider],
    release_teacher: Callable[[], None] = lambda: None,
    teacher_weights: str | None = None,
) -> dict[str, int]:
    """Write answers.jsonl and scores.json from test.jsonl and student/; returns counts.

    All models draw with `sampling`; `seed` decides the draws of base and student, and the resamples. Of the
    `teachers`, by their names in the engine, the one that answered a prompt answers a second time, else the first; none
    leaves that out. `release_teacher` is called when it is not needed any more.
    `teacher_weights` is the teacher as a recipe names it, where it can be loaded here. Reads the journal for what is
    known of the teacher's first answers. Raises `DistillError` when base and student are the same model.
    """
    found = _Found(_prompts(folder, journal))
    local = replace(sampling, seed=seed)
    if found.prompts and teachers:
        _ask_teacher_again(found, engine, teachers, sampling)
    release_teacher()
    if found.prompts:
        _ask_here(found, engine, folder / "student", metrics, local)
        _ask_teacher_weights(found, engine, metrics, teacher_weights)
    _score_texts(found, metrics)
    summary = _summary(found, metrics, seed)
    names = [Path(teacher.endpoint.model).name for teacher in teachers.values()]
    name = ", ".join(names) or Path(teacher_weights or "teacher").name
    described = _described(folder, name) if found.prompts else {}
    write_rows(folder / "answers.jsonl", (_line(found, index) for index in range(len(found.prompts))))
    scores = {"prompts": len(found.prompts), "method": _method(sampling, seed), "models": described, **summary}
    write_json(folder / "scores.json", scores)
    missing = sum(found.missing.values())
    return {"prompts": len(found.prompts), "answers": sum(map(len, found.answers.values())), "missing": missing}


# What is compared


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A held-out prompt with the teacher's first answer."""

    id: str
    messages: tuple[Message, ...]
    reference: Answered
    teacher: str | None = None
    """Who gave it."""
    again: int = 1
    """The replica that is asked as its second answer; another than the first was, of which best_of draws several."""


@dataclass(slots=True)
class _Found:
    """What is known so far, by model and index of the prompt."""

    prompts: list[_Prompt]
    answers: dict[Model, dict[int, Answered]] = field(default_factory=dict)
    scores: dict[Model, dict[int, dict[str, float]]] = field(default_factory=dict)
    missing: Counter[Model] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    metric_notes: dict[str, str] = field(default_factory=dict)
    """By name of the measure."""

    def add(self, model: Model, index: int, scores: Scores) -> None:
        """Take a model's scores on a prompt; a number that is not finite is no score."""
        known = self.scores.setdefault(model, {}).setdefault(index, {})
        known.update({name: value for name, value in scores.items() if math.isfinite(value)})

    def values(self, measure: Measure, model: Model) -> dict[int, float]:
        """By prompt, for those that have one."""
        rows = self.scores.get(model, {})
        return {index: rows[index][measure.name] for index in sorted(rows) if measure.name in rows[index]}


def _prompts(folder: Path, journal: Journal) -> list[_Prompt]:
    path = folder / "test.jsonl"
    if not path.exists():
        raise RunFolderError(f"no {path}; expected the held-out sessions that `distill curate` writes")
    return [_prompt(session, journal) for session in read_sessions(path)]


def _prompt(session: Session, journal: Journal) -> _Prompt:
    roles = [message.role for message in session.messages]
    first = roles.index("assistant") if "assistant" in roles else 0
    if first == 0:
        raise RunFolderError(
            f"test.jsonl: session {session.id} is no prompt with an answer; run `distill curate` again"
        )
    text = session.messages[first].content.strip()
    cut = bool(session.meta.get("truncated")) and first == len(roles) - 1
    bought = next((answer for key in session.meta.get("keys", ()) if _says(answer := journal.get(key), text)), None)
    tokens = bought.usage.completion_tokens if isinstance(bought, Completion) and bought.usage else None
    reference = Answered(text, "length" if cut else "stop", tokens)
    again = 0 if session.meta.get("replica") == 1 else 1
    return _Prompt(session.id, session.messages[:first], reference, session.meta.get("teacher"), again)


def _says(answer: Any, text: str) -> bool:
    return isinstance(answer, Completion) and answer.text.strip() == text


# Asking


def _answer(request: Request) -> Flow[Answered | None]:
    answer: Completion | Failure = yield request
    if isinstance(answer, Failure):
        return None
    tokens = answer.usage.completion_tokens if answer.usage is not None else None
    return Answered(answer.text.strip(), answer.finish, tokens)


def _probe(role: Model, prompts: Sequence[_Prompt]) -> Flow[float | None]:
    """How probable the model finds the first answer that is not empty; the metric's own question, so asked once."""
    for prompt in prompts:
        if prompt.reference.text:
            answer = yield Request(
                role=role, messages=prompt.messages, kind="likelihood", continuation=prompt.reference.text
            )
            return None if isinstance(answer, Failure) else float(answer.loglikelihood)
    return None


def _ask_teacher_again(found: _Found, engine: Engines, teachers: Mapping[str, Provider], sampling: Sampling) -> None:
    first = next(iter(teachers))
    names = {prompt.id: f"teacher:{prompt.teacher}" for prompt in found.prompts}
    flows = [_named(prompt, _answer, _question("teacher", prompt, sampling, prompt.again)) for prompt in found.prompts]
    with console.progress("asking the teacher again", len(flows)) as bar:
        asking = engine(teachers, progress=bar, local=False)
        outcomes = asking.run(flows, choose=lambda id, role: names[id] if names[id] in teachers else first)
    _take_answers(found, "teacher_again", outcomes)


def _ask_here(
    found: _Found, engine: Engines, student: Path, metrics: Sequence[TextMetric | ModelMetric], sampling: Sampling
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


def _ask_teacher_weights(
    found: _Found, engine: Engines, metrics: Sequence[TextMetric | ModelMetric], weights: str | None
) -> None:
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
    found: _Found,
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
    with console.progress(f"asking {_NAMES[role]}", len(flows)) as bar:
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


def _question(role: str, prompt: _Prompt, sampling: Sampling | None, replica: int = 0) -> Request:
    return Request(role=role, messages=prompt.messages, sampling=sampling or Sampling(), replica=replica)


_Named: TypeAlias = tuple[str, Callable[[], Flow[Any]]]


def _named(prompt: _Prompt, make: Callable[..., Flow[Any]], *arguments: Any) -> _Named:
    return prompt.id, partial(make, *arguments)


def _take_answers(found: _Found, model: Model, outcomes: Sequence[Outcome[Answered | None]]) -> None:
    found.answers[model] = {i: outcome.value for i, outcome in enumerate(outcomes) if outcome.value is not None}
    lacking = [outcome for outcome in outcomes if outcome.value is None]
    if lacking:
        found.missing[model] = len(lacking)
        found.notes.append(
            f"{_NAMES[model]} has no answer to {len(lacking)} of {len(outcomes)} prompts ({_reasons(lacking)}); "
            "each number rests on the prompts that have what it needs"
        )


def _take_scores(found: _Found, model: Model, outcomes: Sequence[Outcome[Scores]]) -> None:
    for number, outcome in enumerate(outcomes):
        found.add(model, number % len(found.prompts), outcome.value or {})
    lacking = [outcome for outcome in outcomes if outcome.failures]
    if lacking:
        found.notes.append(
            f"{_NAMES[model]} gave no likelihood for {len(lacking)} of {len(outcomes)} answers ({_reasons(lacking)})"
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


# Scoring


def _score_texts(found: _Found, metrics: Sequence[TextMetric | ModelMetric]) -> None:
    found.answers["teacher"] = {index: prompt.reference for index, prompt in enumerate(found.prompts)}
    for metric in metrics:
        if metric.scope == "text":
            for model, answers in found.answers.items():
                for index, answer in answers.items():
                    prompt = found.prompts[index]
                    found.add(model, index, metric.score(Sample(prompt.messages, model, answer, prompt.reference)))


def _line(found: _Found, index: int) -> dict[str, Any]:
    """The prompt's line of answers.jsonl."""
    prompt = found.prompts[index]
    return {
        "id": prompt.id,
        "messages": prompt.messages,
        "answers": {model: found.answers[model][index] for model in MODELS if index in found.answers.get(model, {})},
        "scores": {model: found.scores[model][index] for model in MODELS if found.scores.get(model, {}).get(index)},
    }


def _summary(found: _Found, metrics: Sequence[TextMetric | ModelMetric], seed: int) -> dict[str, Any]:
    entries = {
        measure.name: _entry(found, measure, seed) for metric in metrics for measure in metric.measures if found.prompts
    }
    if not found.prompts:
        found.notes.append("there are no held-out prompts; set collect.test to 32 or more")
    cut = {model: _share_cut(list(answers.values())) for model in MODELS if (answers := found.answers.get(model))}
    return {
        "metrics": entries,
        "cut_share": cut,
        "notes": found.notes,
        "headline": headline(len(found.prompts), entries),
    }


def _share_cut(answers: Sequence[Answered]) -> float:
    return sum(answer.finish == "length" for answer in answers) / len(answers)


def _entry(found: _Found, measure: Measure, seed: int) -> dict[str, Any]:
    """A measure's entry in scores.json."""
    values = {model: values for model in MODELS if (values := found.values(measure, model))}
    gap, target, note = _gap(measure, values, seed)
    notes = [text for text in (found.metric_notes.get(measure.name), note) if text]
    return {
        "title": measure.title,
        "unit": measure.unit,
        "better": measure.better,
        "explanation": measure.explanation,
        "note": "; ".join(notes) or None,
        "by": {model: mean_interval(list(each.values()), seed=seed) for model, each in values.items()},
        "student_minus_base": _difference(values, seed),
        "gap_closed": gap,
        "gap_target": target,
    }


def _difference(values: Mapping[Model, Mapping[int, float]], seed: int) -> Any:
    student, base = _paired(values, "student", "base")
    return paired_difference(student, base, seed=seed)


def _gap(
    measure: Measure, values: Mapping[Model, Mapping[int, float]], seed: int
) -> tuple[Gap | None, Model | None, str | None]:
    """The share of the gap, what it is the gap to, and why there is none.

    Where the teacher's first answer is what is compared with, its second is the end of the way. A measure that is
    better near 1 has two sides to come from, and no share.
    """
    target: Model = "teacher" if "teacher" in values else "teacher_again"
    if measure.better == "near 1" or not {"base", "student", target} <= values.keys():
        return None, None, None
    base, student, end = _paired(values, "base", "student", target)
    gap = gap_closed(base, student, end, seed=seed)
    return (None, None, f"no share of the gap: {gap.reason}") if isinstance(gap, Refused) else (gap, target, None)


def _paired(values: Mapping[Model, Mapping[int, float]], *models: Model) -> list[list[float]]:
    """One list a model, over the prompts that all of them have, in order."""
    rows = [values.get(model, {}) for model in models]
    common = [index for index in rows[0] if all(index in row for row in rows)]
    return [[row[index] for index in common] for row in rows]


# Saying


def headline(prompts: int, metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence on how far the student came, from the entries of scores.json."""
    if not prompts:
        return "There are no held-out prompts, so nothing was compared; set collect.test to 32 or more."
    pieces = [_lead(prompts, metrics), _likeness(metrics.get("rouge_l")), _manner(metrics)]
    return "; ".join(piece for piece in pieces if piece) + "."


def _lead(prompts: int, metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The first share of a gap that could be had, else the first difference."""
    for entry in metrics.values():
        if (gap := entry["gap_closed"]) is not None:
            end = "the teacher" if entry["gap_target"] == "teacher" else "the teacher's own second answers"
            interval = f"95% CI {_percent(gap.low)} to {_percent(gap.high)}"
            return (
                f"The student closes {_percent(gap.share)} ({interval}) of the gap in {entry['title']} between the "
                f"untrained base and {end} on {_prompts_of(gap.n, prompts)}"
            )
    for name, entry in metrics.items():
        if entry["student_minus_base"] is not None and name != "rouge_l":
            return f"On {_prompts_of(entry['student_minus_base'].n, prompts)}: {_against_base(entry)}"
    return f"The student was compared on {_prompts_of(prompts, prompts)}"


def _prompts_of(some: int, all_: int) -> str:
    plural = "" if all_ == 1 else "s"
    return f"{all_} held-out prompt{plural}" if some == all_ else f"{some} of {all_} held-out prompts"


def _against_base(entry: Mapping[str, Any], more: str = "") -> str:
    by, difference = entry["by"], entry["student_minus_base"]
    doubt = "" if difference.excludes_zero else ", so it may be none"
    interval = f"95% CI {_number(difference.low)} to {_number(difference.high)}"
    return (
        f"{entry['title']} {_number(by['student'].mean)} against the base's {_number(by['base'].mean)} "
        f"(difference {_number(difference.mean, sign='+')}, {interval}{doubt}{more})"
    )


def _likeness(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["student_minus_base"] is None:
        return ""
    again: Interval | None = entry["by"].get("teacher_again")
    return _against_base(entry, f"; the teacher's own second answer: {_number(again.mean)}" if again else "")


def _manner(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether it stops, and whether it goes round in circles."""
    said = []
    for name, words, written in (("stopped", "it stops by itself in", _percent), ("repetition", "repetition", _number)):
        by = metrics[name]["by"] if name in metrics else {}
        if "student" in by:
            of = " of answers" if name == "stopped" else ""
            teacher = f" (teacher {written(by['teacher'].mean)})" if "teacher" in by else ""
            said.append(f"{words} {written(by['student'].mean)}{of}{teacher}")
    return ", ".join(said)


def _number(value: float, *, sign: str = "") -> str:
    return f"{value:{sign}.2f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%".replace("-", "−")


def _method(sampling: Sampling, seed: int) -> str:
    drawn = [
        f"{name} {value:g}"
        for name, value in (("temperature", sampling.temperature), ("top_p", sampling.top_p))
        if value is not None
    ]
    drawn += [f"at most {sampling.max_tokens} tokens"] if sampling.max_tokens else []
    return (
        f"means over prompts; {LEVEL:.0%} percentile intervals from {RESAMPLES:,} resamples of the prompts "
        f"(seed {seed}), differences paired by prompt; all models drew with {', '.join(drawn) or 'default sampling'}"
    )


def _described(folder: Path, teacher: str) -> dict[Model, dict[str, str]]:
    told = read_base(folder / "student")
    model = Path(told["model"]).name
    weights = ", 4-bit" if told["quantised"] else ""
    layers = f"{len(told['layers'])} layers of " if told["layers"] else ""
    return {
        "base": {"model": model, "description": f"the student before training: {layers}{model}{weights}"},
        "student": {"model": model, "description": "the same after training"},
        "teacher": {"model": teacher, "description": "the teacher's first answers, which are compared with"},
        "teacher_again": {"model": teacher, "description": "the teacher's second answer to each prompt, drawn anew"},
    }
