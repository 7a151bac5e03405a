"""Rows and model pairs shared by exporters of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from distill.core.jsonl import read_jsonl
from distill.errors import RunFolderError

Row: TypeAlias = Mapping[str, Any]
PAIRS = (("student", "teacher"), ("base", "teacher"), ("student", "base"))


def rows_of(run: Path) -> list[Row]:
    """The lines of answers.jsonl. Raises `RunFolderError` where the run was not compared."""
    path = run / "answers.jsonl"
    if not path.is_file():
        raise RunFolderError(f"{run} was not compared yet; type: distill compare {run}")
    return list(read_jsonl(path))


def scores_of(run: Path) -> Row:
    """The contents of scores.json. Raises `RunFolderError` where it is missing or damaged."""
    path = run / "scores.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); type: distill compare {run}") from error


def prompt_text(row: Row) -> str:
    """The whole prompt: the system message first, then its turns."""
    texts = [message["content"] for message in row["messages"]]
    return "\n\n".join([*texts, *row.get("turns", ())])


def answer_text(row: Row, model: str) -> str | None:
    """A model's answer; of several turns, all of them."""
    answer = row["answers"].get(model)
    return None if answer is None else "\n\n".join([*answer.get("earlier", ()), answer["text"]])


def display_name(scores: Row, model: str) -> str:
    """A model's role and its own name."""
    model_name = (scores.get("models") or {}).get(model, {}).get("model")
    return f"{model} ({model_name})" if model_name else model
