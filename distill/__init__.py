"""Train a small model to imitate a large one: collect a teacher's answers, curate them, train, compare."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Completion": "distill.types",
    "DistillError": "distill.errors",
    "Failure": "distill.types",
    "Message": "distill.types",
    "Recipe": "distill.recipe",
    "Request": "distill.types",
    "Sampling": "distill.types",
    "Session": "distill.types",
    "Task": "distill.types",
    "Verdict": "distill.types",
    "load_recipe": "distill.catalogue",
    "run_recipe": "distill.pipeline",
}

__all__ = [*sorted(_PUBLIC), "__version__"]  # noqa: PLE0604 - the names come from the table above


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
