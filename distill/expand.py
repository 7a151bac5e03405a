"""Stage expand: grows tasks through the teacher, and writes tasks.jsonl and, with the reasons, refused.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.engine import Grown, Stopped
from distill.engine.drive import Engine
from distill.rows import write_rows
from distill.types import Growth, Task


def expand(folder: Path, *, growth: Growth, target: int, engine: Engine) -> Mapping[str, Any]:
    """Grow `target` tasks and write them, and what was refused; returns the stage's counts.

    Raises what `Engine.grow` raises, after writing the tasks admitted so far: they are the beginning of the same list.
    """
    try:
        grown = engine.grow(growth, target)
    except Stopped as stop:
        if stop.grown is not None:
            _write(folder, stop.grown.tasks, growth)
        raise
    _write(folder, grown.tasks, growth)
    return _counts(growth, grown)


def _write(folder: Path, tasks: Sequence[Task], growth: Growth) -> None:
    """Write what was admitted, and what was not: in the same form, with the reason in `meta.refused`."""
    write_rows(folder / "refused.jsonl", getattr(growth, "refused", ()))
    write_rows(folder / "tasks.jsonl", tasks)


def _counts(growth: Growth, grown: Grown) -> dict[str, Any]:
    """Candidates are the tasks and those rejected by reason, `beyond_target` what the last request had too many."""
    rejected = dict(sorted(getattr(growth, "rejected", {}).items(), key=lambda item: (-item[1], item[0])))
    surplus = grown.candidates - sum(rejected.values()) - len(grown.tasks)
    if hasattr(growth, "rejected") and surplus > 0:
        rejected["beyond_target"] = surplus
    return {
        "seeds": getattr(growth, "seeds", 0),
        "requests": grown.requests,
        "failed": len(grown.failures) + len(grown.errors),
        "candidates": grown.candidates,
        "tasks": len(grown.tasks),
        "rejected": rejected,
    }
