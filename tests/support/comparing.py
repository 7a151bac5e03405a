"""Recorded answers of four models, compared with no model at hand."""

from __future__ import annotations

import json
from pathlib import Path

from distill.compare.metrics.likelihood import Likelihood
from distill.compare.metrics.overlap import Overlap
from distill.compare.metrics.style import Style
from distill.compare.stage import Sides, compare
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.types import Sampling
from tests.support.engine.engines import bound

WORDS = ("river", "mountain", "harbour", "engine", "garden", "window", "library", "market", "bridge", "candle")


def questions(count: int = 10) -> list[dict]:
    """Half of them in each of two categories."""
    return [
        {"question_id": number, "category": ("writing", "maths")[number % 2], "turns": [f"Describe the {word} in May."]}
        for number, word in enumerate(WORDS[:count])
    ]


def answers(text: str, count: int = 10) -> list[dict]:
    return [{"question_id": number, "text": text.format(word=word)} for number, word in enumerate(WORDS[:count])]


TEXTS = {
    "base": "I do not know.",
    "student": "The {word} is bright in May and people like it.",
    "teacher": "The {word} is bright in May, and many people come to see it.",
    "teacher_again": "The {word} is bright in May, so that many people come to see it.",
}


def write(folder: Path, name: str, rows: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def recorded(folder: Path, **texts: str) -> dict[str, Path]:
    return {model: write(folder, f"{model}.jsonl", answers(text)) for model, text in {**TEXTS, **texts}.items()}


METRICS = (Likelihood(), Overlap(), Style())


def compared(folder: Path, *, prompts=None, metrics=METRICS, **sides):
    """The scores and the answers of a comparison."""
    with Journal.open(folder / "journal.sqlite") as journal:

        def engine(providers, *, progress, local):
            return Engine(
                journal, bound(**providers), progress=progress, stage="compare", first_wait_seconds=0.01, attempts=2
            )

        compare(
            folder,
            engine=engine,
            journal=journal,
            metrics=metrics,
            sampling=Sampling(temperature=0.0, max_tokens=32),
            seed=7,
            sides=Sides(**sides),
            prompts=prompts or write(folder, "questions.jsonl", questions()),
        )

    def refuse(name: str):
        raise AssertionError(f"{name} in scores.json")

    scores = json.loads((folder / "scores.json").read_text(), parse_constant=refuse)
    return scores, [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
