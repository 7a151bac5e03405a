"""Rows and model pairs shared by exporters of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from distill.core.jsonl import read_jsonl
from distill.run.scores import Comparison, require_scores

Row: TypeAlias = Mapping[str, Any]
PAIRS = (("student", "teacher"), ("base", "teacher"), ("student", "base"))


def compared(run: Path) -> tuple[Comparison, list[Row]]:
    """A run's scores and the lines of answers.jsonl. Raises `RunFolderError` where the run was not compared."""
    return require_scores(run), list(read_jsonl(run / "answers.jsonl"))


def prompt_text(row: Row) -> str:
    """The whole prompt: the system message first, then its turns."""
    texts = [message["content"] for message in row["messages"]]
    return "\n\n".join([*texts, *row.get("turns", ())])


def answer_text(row: Row, model: str) -> str | None:
    """A model's answer; of several turns, all of them."""
    answer = row["answers"].get(model)
    return None if answer is None else "\n\n".join([*answer.get("earlier", ()), answer["text"]])


def display_name(scores: Comparison, model: str) -> str:
    """A model's role and its own name."""
    model_name = scores.models.get(model, {}).get("model")
    return f"{model} ({model_name})" if model_name else model
