"""Services that a run's figures can be sent to: whether they are installed, and their callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distill import processes
from distill.errors import MissingPackage


def require_trackers(names: Sequence[str]) -> None:
    """Raise `MissingPackage` for the first that is not installed; imports none."""
    for name in names:
        if not _is_installed(name):
            raise MissingPackage(
                f"train.report_to names {name}, which is not installed; type: pip install {name}, or leave it out "
                "(train_log.jsonl is written in any case)"
            )


def _is_installed(name: str) -> bool:
    """By its metadata: a folder `wandb` here, as wandb leaves them, is no package."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def trackers(names: Sequence[str], folder: Path, step: int) -> list[Any]:
    """A callback for each; TensorBoard's files go to `folder/tensorboard`, cut back to `step` where a run goes on."""
    require_trackers(names)
    return [] if not processes.is_first() else [_tracker(name, folder, step) for name in names]


def _tracker(name: str, folder: Path, step: int) -> Any:
    from transformers import integrations

    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return integrations.TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1))
    return integrations.WandbCallback() if name == "wandb" else integrations.TrackioCallback()
