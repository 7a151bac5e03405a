"""The `train --plan` and `--show-masks` commands: a measured plan, and examples with their loss masks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from distill.core import console
from distill.errors import StageIncomplete
from distill.pipeline.origins import load_addressed
from distill.pipeline.requirements import require_training_packages
from distill.run.layout import stages_of
from distill.train.options import TrainSettings
from distill.train.stage import kept_sessions, settings_of, training_packages


def plan(
    path: Path, *, run_dir: Path | None = None, overrides: Iterable[str] = (), allowed: Collection[str] = ()
) -> Iterator[str]:
    """Memory and time of training on a run's kept rows, by formula and by one measured pass; writes nothing.

    Raises `StageIncomplete` where there are no kept rows, and what training would raise.
    """
    folder, settings = _settings(path, run_dir, overrides, allowed)
    with training_packages():
        from distill.train import plan
    return plan.plan(kept_sessions(folder), settings, say=console.say)


def show_masks(
    path: Path,
    count: int,
    *,
    run_dir: Path | None = None,
    overrides: Iterable[str] = (),
    allowed: Collection[str] = (),
) -> None:
    """Check the loss masks of all kept rows and print `count` of them; writes nothing."""
    folder, settings = _settings(path, run_dir, overrides, allowed)
    with training_packages():
        from distill.train import plan
    for row in plan.masks(kept_sessions(folder), settings, count=count, say=console.say):
        console.show_marked(row)


def _settings(
    path: Path, run_dir: Path | None, overrides: Iterable[str], allowed: Collection[str]
) -> tuple[Path, TrainSettings]:
    """The run folder and the training settings."""
    recipe, folder = load_addressed(path, run_dir, overrides, allowed)
    settings = settings_of(recipe)
    require_training_packages("distill train")
    if not (folder / "kept.jsonl").is_file():
        stages = stages_of(recipe)
        before = ",".join(stages[: stages.index("train")])
        into = f" --run-dir {run_dir}" if run_dir is not None else ""
        raise StageIncomplete(
            f"{folder} has no kept.jsonl, the rows to train on; type: distill run {path}{into} --stages {before}"
        )
    return folder, settings
