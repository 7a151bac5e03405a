"""Experiment trackers: availability and callbacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distill.core import processes
from distill.errors import DistillError, MissingPackage
from distill.models.third_party import first_line
from distill.train.packing import PackingPlan

PROJECT = "distill"
"""Project name in the trackers, unless WANDB_PROJECT is set."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise `MissingPackage` for the first that is not installed; imports none."""
    for name in names:
        if not is_installed(name):
            raise MissingPackage(
                f"train.report_to names {name}, which is not installed; type: pip install {name}, or leave it out "
                "(train_log.jsonl is written in any case)"
            )


def is_installed(name: str) -> bool:
    """By its metadata: a folder `wandb`, as wandb leaves one, could be imported as well."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def trackers(names: Sequence[str], folder: Path, step: int, *, plan: PackingPlan, arguments: Any) -> list[Any]:
    """A callback for each tracker, after one that corrects the epochs.

    TensorBoard writes to `folder/tensorboard`, truncated to `step` when a run is resumed, and wandb to `folder/wandb`;
    trackio has its own folder (TRACKIO_DIR). The last two name a run by its folder and the time, so that a resumed run
    is a new one there. `arguments` are the trainer's.
    """
    if not names or not processes.is_first():
        return []
    arguments.project, arguments.run_name = PROJECT, f"{folder.resolve().parent.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return [_epochs(plan), *(_tracker(name, folder, step, arguments.run_name) for name in names)]


def _epochs(plan: PackingPlan) -> Any:
    """Replaces the epochs in transformers' log, where a whole run is one, by those of the plan."""
    from transformers import TrainerCallback

    class Epochs(TrainerCallback):  # type: ignore[misc]  # the library has no types
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs is not None and "epoch" in logs:
                logs["epoch"] = plan.epoch(state.global_step)

    return Epochs()


def _tracker(name: str, folder: Path, step: int, run: str) -> Any:
    from transformers import integrations

    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return integrations.TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1))
    if name == "wandb":
        _begin_wandb(folder, run)
        return integrations.WandbCallback()
    return integrations.TrackioCallback()


def _begin_wandb(folder: Path, run: str) -> None:
    """Start a run for the callback to use. Raises `DistillError` where wandb cannot."""
    import wandb

    if wandb.run is not None:
        wandb.finish()
    try:
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), dir=os.environ.get("WANDB_DIR", str(folder)), name=run
        )
    except wandb.errors.Error as error:
        raise DistillError(
            f"train.report_to: wandb does not begin a run ({first_line(error)}); type: wandb login, set "
            "WANDB_MODE=offline, or leave it out (train_log.jsonl is written in any case)"
        ) from error
