"""The held-out prompts, and what is known so far of each model's answers to them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.comparing import MODELS
from distill.errors import RunFolderError
from distill.journal import Journal
from distill.metrics import Answered, Measure, Model, ModelMetric, Sample, Scores, TextMetric
from distill.rows import read_sessions
from distill.types import Completion, Message, Session


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out prompt with the teacher's first answer."""

    id: str
    messages: tuple[Message, ...]
    reference: Answered
    teacher: str | None = None
    """Who gave it."""
    again: int = 1
    """The replica that is asked as its second answer; another than the first was, of which best_of draws several."""


@dataclass(slots=True)
class Found:
    """What is known so far, by model and index of the prompt."""

    prompts: list[Prompt]
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


def read_prompts(folder: Path, journal: Journal) -> list[Prompt]:
    """The held-out prompts of test.jsonl. Raises `RunFolderError` without the file, or for a row that is no prompt."""
    path = folder / "test.jsonl"
    if not path.exists():
        raise RunFolderError(f"no {path}; expected the held-out sessions that `distill curate` writes")
    return [prompt_of_session(session, journal) for session in read_sessions(path)]


def prompt_of_session(session: Session, journal: Journal) -> Prompt:
    """A held-out session as a prompt, with the teacher's answer to its first question as the journal knows it."""
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
    return Prompt(session.id, session.messages[:first], reference, session.meta.get("teacher"), again)


def _says(answer: Any, text: str) -> bool:
    return isinstance(answer, Completion) and answer.text.strip() == text


def score_texts(found: Found, metrics: Sequence[TextMetric | ModelMetric]) -> None:
    """Score every answer by the metrics that read texts alone."""
    found.answers["teacher"] = {index: prompt.reference for index, prompt in enumerate(found.prompts)}
    for metric in metrics:
        if metric.scope == "text":
            for model, answers in found.answers.items():
                for index, answer in answers.items():
                    prompt = found.prompts[index]
                    found.add(model, index, metric.score(Sample(prompt.messages, model, answer, prompt.reference)))


def line(found: Found, index: int) -> dict[str, Any]:
    """The prompt's line of answers.jsonl."""
    prompt = found.prompts[index]
    return {
        "id": prompt.id,
        "messages": prompt.messages,
        "answers": {model: found.answers[model][index] for model in MODELS if index in found.answers.get(model, {})},
        "scores": {model: found.scores[model][index] for model in MODELS if found.scores.get(model, {}).get(index)},
    }
