"""The `train --plan` and `--show-masks` commands: a measured plan, and examples with their loss masks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.errors import StageIncomplete
from distill.pipeline.parts import load_recipe
from distill.pipeline.requirements import require_training_packages
from distill.run.layout import stages_of
from distill.train import stage as stage_module
from distill.train.stage import masks, settings_of


def plan(
    path: Path, *, run_dir: Path | None = None, overrides: Iterable[str] = (), allowed: Collection[str] = ()
) -> Iterator[str]:
    """What training a run's kept rows would take; writes nothing.

    Raises `StageIncomplete` where there are none yet, and what training would raise.
    """
    folder, settings = _settings(path, run_dir, overrides, allowed)
    del settings["prune_by"]  # which layers are kept changes neither memory nor time
    return stage_module.plan(folder, **settings)


def show_masks(
    path: Path,
    count: int,
    *,
    run_dir: Path | None = None,
    overrides: Iterable[str] = (),
    allowed: Collection[str] = (),
) -> None:
    """Check the masks of all of a run's kept rows and show so many of them; writes nothing."""
    folder, settings = _settings(path, run_dir, overrides, allowed)
    masks(folder, model=settings["model"], template=settings["template"], options=settings["options"], count=count)


def _settings(
    path: Path, run_dir: Path | None, overrides: Iterable[str], allowed: Collection[str]
) -> tuple[Path, dict[str, Any]]:
    """The run folder, and what training is given."""
    loaded = load_recipe(path, overrides=overrides, allowed=allowed)
    settings = settings_of(loaded)
    require_training_packages("distill train")
    folder = run_dir or (path if path.is_dir() else Path("runs") / loaded.name)
    if not (folder / "kept.jsonl").is_file():
        stages = stages_of(loaded)
        before = ",".join(stages[: stages.index("train")])
        into = f" --run-dir {run_dir}" if run_dir is not None else ""
        raise StageIncomplete(
            f"{folder} has no kept.jsonl, the rows to train on; type: distill run {path}{into} --stages {before}"
        )
    return folder, settings
