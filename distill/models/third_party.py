"""Silences transformers while it loads, and shortens its errors to one line."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from distill.core import processes
from distill.errors import ModelError, RunFolderError
from distill.models.templates.trial import OVER

_NOISY = ("trl", "accelerate", "datasets", "bitsandbytes", "peft", "huggingface_hub")


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress progress bars and advice of the libraries."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def quiet() -> Iterator[None]:
    """The same for a whole training, also without warnings and network use."""
    import datasets
    from huggingface_hub import constants as hub

    online = hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY
    datasets.disable_progress_bars()
    hub.HF_HUB_OFFLINE = hub.HF_HUB_DISABLE_TELEMETRY = True
    try:
        with quietly(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY = online
        datasets.enable_progress_bars()


@cache
def is_bounded(template: str) -> bool:
    """Whether a chat template renders conversations within 1 s and 400 MB, tried once in another process."""
    script = Path(__file__).parent / "templates" / "trial.py"
    status = processes.run(processes.python(str(script)), given=json.dumps(template)).returncode
    return status >= 0 and status != OVER


def first_line(error: BaseException, folder: str = "") -> str:
    """A library's error in one line of at most 200 characters; paths in it are relative to `folder`."""
    info = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    return (info.replace(f"{folder}/", "") if folder else info)[:200]


_UNWRITTEN = r"\(os error \d+\)|PytorchStreamWriter|inline_container"


@contextmanager
def explained_errors(student_folder: Path) -> Iterator[None]:
    """Turn a full disk and out-of-memory into errors that name a remedy."""
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
    """Whether an error of Python, PyTorch, safetensors or tokenizers means that a file cannot be written."""
    from safetensors import SafetensorError

    return isinstance(error, OSError | SafetensorError) or re.search(_UNWRITTEN, str(error)) is not None


def reason_of(error: Exception) -> str:
    """The system's message where there is one, else the first line of the error."""
    return getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
