"""Train a small model to imitate a large one: collect a teacher's answers, curate them, train, compare."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Comparison": "distill.run_folder",
    "Completion": "distill.types",
    "DistillError": "distill.errors",
    "Failure": "distill.types",
    "JournalCounts": "distill.run_folder",
    "Measured": "distill.run_folder",
    "Message": "distill.types",
    "Recipe": "distill.recipe",
    "Request": "distill.types",
    "RunFolder": "distill.run_folder",
    "Sampling": "distill.types",
    "Session": "distill.types",
    "Task": "distill.types",
    "Verdict": "distill.types",
    "collect_sessions": "distill.api",
    "compare_models": "distill.api",
    "curate_sessions": "distill.api",
    "expand_tasks": "distill.api",
    "load_recipe": "distill.catalogue",
    "open_run": "distill.run_folder",
    "run_recipe": "distill.api",
    "train_student": "distill.api",
}
"""Names and their modules, imported when first asked for; `__init__.pyi` tells type checkers the same."""

__all__ = [*sorted(_PUBLIC), "__version__"]  # noqa: PLE0604 - the names come from the table above


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
