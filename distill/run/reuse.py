"""The runs whose journals answer a run's questions."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from distill.core import console
from distill.engine.journal.store import NAME
from distill.recipe import Recipe
from distill.run import students


def reused_runs(folder: Path, recipe: Recipe) -> list[Path]:
    """The runs that a recipe reuses, and those that these have reused, nearest first, each once.

    A run further on that has no journal any more is reported in a line and left out.
    """
    runs, seen = [], {folder.resolve()}
    ahead = deque((Path(each), folder) for each in recipe.reuse)
    while ahead:
        run, by = ahead.popleft()
        if run.resolve() in seen:
            continue
        seen.add(run.resolve())
        if not (run / NAME).is_file():
            console.warn(
                f"reuse: {by} reuses {run}, which has no journal now; answers that only it had are asked again"
            )
            continue
        runs.append(run)
        before = students.recipe(run).get("reuse")
        ahead += ((Path(each), run) for each in (before if isinstance(before, list) else ()) if isinstance(each, str))
    return runs
