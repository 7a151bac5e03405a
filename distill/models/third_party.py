"""Silences transformers while it loads, and shortens its errors to one line."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.errors import ModelError, RunFolderError


@contextmanager
def quietly() -> Iterator[None]:
    """Keep progress bars and advice of the loaders, and of the kernels of 4-bit weights, off the terminal."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    kernels = logging.getLogger("bitsandbytes")
    before = kernels.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    kernels.setLevel(logging.ERROR)  # it warns of a kernel that is not installed
    try:
        yield
    finally:
        kernels.setLevel(before)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def first_line(error: BaseException, folder: str = "") -> str:
    """An error of others on one line of at most 200 characters; `folder` is left out of the paths in it."""
    info = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    return (info.replace(f"{folder}/", "") if folder else info)[:200]


_UNWRITTEN = r"\(os error \d+\)|PytorchStreamWriter|inline_container"
_NOISY = ("trl", "accelerate", "datasets", "bitsandbytes", "peft", "huggingface_hub")


@contextmanager
def in_our_words(student_folder: Path) -> Iterator[None]:
    """Say of a full disk and a full GPU what to do about it."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "the GPU's memory is too small for training; lower train.max_length or train.micro_batch_tokens, set "
            "train.checkpointing to full, or train a smaller student"
        ) from error
    except Exception as error:  # tokenizers raises nothing narrower
        if not is_of_the_disk(error):
            raise
        raise RunFolderError(
            f"cannot write in {student_folder} ({reason_of(error)}); free some space or mend the permissions, "
            "and run again: training goes on from its last checkpoint"
        ) from error


def is_of_the_disk(error: Exception) -> bool:
    """Whether it says that a file cannot be written, in the words of Python, PyTorch, safetensors or tokenizers."""
    from safetensors import SafetensorError

    return isinstance(error, OSError | SafetensorError) or re.search(_UNWRITTEN, str(error)) is not None


def reason_of(error: Exception) -> str:
    """The system's words where it has some, else the first line of the library's."""
    return getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep foreign progress bars, warnings and log lines off the terminal, and foreign code off the network."""
    import datasets
    from huggingface_hub import constants as hub
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    online = hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    hub.HF_HUB_OFFLINE = hub.HF_HUB_DISABLE_TELEMETRY = True
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY = online
        for name, old in levels.items():
            logging.getLogger(name).setLevel(old)
        transformers_logging.set_verbosity(level)
        datasets.enable_progress_bars()
        if bars:
            transformers_logging.enable_progress_bar()
