"""Keeps transformers off the terminal while it loads, and puts its faults on one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger


@contextmanager
def quietly() -> Iterator[None]:
    """Keep progress bars and advice of the loaders, and of the kernels of 4-bit weights, off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    kernels = getLogger("bitsandbytes")
    before = kernels.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kernels.setLevel(ERROR)  # it warns of a kernel that is not installed
    try:
        yield
    finally:
        kernels.setLevel(before)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException, folder: str = "") -> str:
    """An error of others on one line of at most 200 characters; `folder` is left out of the paths in it."""
    told = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    return (told.replace(f"{folder}/", "") if folder else told)[:200]
