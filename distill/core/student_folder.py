"""Paths of a run's students: current, in training, previous."""

from __future__ import annotations

import shutil
from pathlib import Path

from distill.core.files import require_no_link

STUDENT, NEXT, PREVIOUS = "student", "student.next", "student.previous"
TRAINING, CHECKPOINTS = "training.json", "checkpoints"


def current(run: Path) -> Path:
    """The folder of the current student; `student.next` where its renaming was interrupted.

    Raises `RunFolderError` where it is a link.
    """
    moved = is_student(run / STUDENT) or not is_finished(run / NEXT)
    folder = run / (STUDENT if moved else NEXT)
    require_no_link(folder)
    return folder


def is_student(folder: Path) -> bool:
    """Whether the folder holds a complete student."""
    return (folder / "base.json").is_file()


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a complete student with the record of its training."""
    return is_student(folder) and (folder / TRAINING).is_file()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
