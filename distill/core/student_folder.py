"""Paths of a run's students: current, in training, previous."""

from __future__ import annotations

import shutil
from pathlib import Path

STUDENT, NEXT, PREVIOUS = "student", "student.next", "student.previous"
TRAINING, CHECKPOINTS = "training.json", "checkpoints"


# Where they lie


def current(run: Path) -> Path:
    """The folder of the student that is there; `student.next` where its renaming was cut short."""
    moved = is_student(run / STUDENT) or not _is_finished(run / NEXT)
    return run / (STUDENT if moved else NEXT)


def is_student(folder: Path) -> bool:
    """Whether a whole student lies there."""
    return (folder / "base.json").is_file()


def _is_finished(folder: Path) -> bool:
    return is_student(folder) and (folder / TRAINING).is_file()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
