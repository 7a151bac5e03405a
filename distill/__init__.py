"""Train a small model to imitate a large one: collect a teacher's answers, curate them, train, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.api import Comparison as Comparison
    from distill.api import JournalCounts as JournalCounts
    from distill.api import Measured as Measured
    from distill.api import RunFolder as RunFolder
    from distill.api import collect_sessions as collect_sessions
    from distill.api import compare_models as compare_models
    from distill.api import curate_sessions as curate_sessions
    from distill.api import expand_tasks as expand_tasks
    from distill.api import open_run as open_run
    from distill.api import run_recipe as run_recipe
    from distill.api import train_student as train_student
    from distill.errors import DistillError as DistillError
    from distill.pipeline.parts import load_recipe as load_recipe
    from distill.recipe import Recipe as Recipe
    from distill.types import Completion as Completion
    from distill.types import Failure as Failure
    from distill.types import Message as Message
    from distill.types import Request as Request
    from distill.types import Sampling as Sampling
    from distill.types import Session as Session
    from distill.types import Task as Task
    from distill.types import Verdict as Verdict


__version__ = "0.1.0"

_PUBLIC = {
    "Comparison": "distill.api",
    "Completion": "distill.types",
    "DistillError": "distill.errors",
    "Failure": "distill.types",
    "JournalCounts": "distill.api",
    "Measured": "distill.api",
    "Message": "distill.types",
    "Recipe": "distill.recipe",
    "Request": "distill.types",
    "RunFolder": "distill.api",
    "Sampling": "distill.types",
    "Session": "distill.types",
    "Task": "distill.types",
    "Verdict": "distill.types",
    "collect_sessions": "distill.api",
    "compare_models": "distill.api",
    "curate_sessions": "distill.api",
    "expand_tasks": "distill.api",
    "load_recipe": "distill.pipeline.parts",
    "open_run": "distill.api",
    "run_recipe": "distill.api",
    "train_student": "distill.api",
}
"""Names and their modules, imported when first asked for; type checkers read the same above."""

__all__ = [*sorted(_PUBLIC), "__version__"]  # noqa: PLE0604 - the names come from the table above


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
