"""Reads what expand has written."""

from __future__ import annotations

from pathlib import Path

from distill.core.jsonl import read_jsonl
from distill.types import Task


def read_tasks(path: Path) -> list[Task]:
    return [Task(**row) for row in read_jsonl(path)]
