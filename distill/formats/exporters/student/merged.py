"""Writes merged weights that load with plain transformers and stop where they stopped in training."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from distill.core.files import read_json, write_json
from distill.errors import ModelError
from distill.formats.exporters.student.receipt import Watch
from distill.formats.exporters.student.source import FLOATS, StudentFolder
from distill.models import chat_template, loading
from distill.models.third_party import quietly

SHARD = "4GB"
"""Largest size of a file of weights."""


def write_merged(student: StudentFolder, folder: Path, dtype: str, watch: Watch) -> None:
    """Write the student with its adapter merged. Raises `ModelError` where `dtype` cannot hold a weight."""
    write_whole(student, student.merged(), folder, dtype)


def load_merged(student: StudentFolder, folder: Path) -> tuple[Any, Any]:
    """Model, in float32, and tokenizer, loaded as by any user."""
    model = loading.load_causal(folder, dtype=torch.float32, device=student.device)
    return model, loading.load_tokenizer(folder)


def write_whole(student: StudentFolder, model: Any, folder: Path, dtype: str) -> None:
    """Write weights, configuration, end tokens, tokenizer and chat template into an existing folder.

    Of the 16-bit types, float16 stores a merged weight more exactly; config.json then names bfloat16 to compute in,
    which no activation overflows. Raises `ModelError` where `dtype` cannot hold a weight.
    """
    _require_room(model, dtype)
    model = model.to(device="cpu", dtype=FLOATS[dtype])
    model.hf_quantizer = None  # the weights are no longer quantised
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _set_end_tokens(model, student)
    with quietly():
        model.save_pretrained(folder, max_shard_size=SHARD)
    compute_dtype = "bfloat16" if dtype == "float16" else dtype
    _rewrite(folder / "config.json", without=("_name_or_path", "_model_name_or_path"), dtype=compute_dtype)
    write_tokenizer(student, folder)


def write_tokenizer(student: StudentFolder, folder: Path) -> None:
    """Write the tokenizer with the chat template that the student was trained with."""
    student.tokenizer.chat_template = chat_template.jinja(student.template, student.tokenizer)
    with quietly():
        student.tokenizer.save_pretrained(folder)
    _rewrite(folder / "tokenizer_config.json", without=("name_or_path", "is_local", "local_files_only"))


def _rewrite(path: Path, *, without: Collection[str], **changes: str) -> None:
    """Remove from a JSON file the keys that describe this machine, and set others."""
    settings = {key: value for key, value in read_json(path).items() if key not in without}
    write_json(path, {**settings, **changes})


def _set_end_tokens(model: Any, student: StudentFolder) -> None:
    """Make `generate` stop at the tokens that ended answers in training, and leave sampling to its caller."""
    from transformers import GenerationConfig

    ends, tokenizer = student.end_ids, student.tokenizer
    settings = {
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    model.generation_config = GenerationConfig(**settings)
    for key, value in settings.items():
        setattr(model.config, key, value)
    model.config.use_cache = True


def _require_room(model: Any, dtype: str) -> None:
    most = torch.finfo(FLOATS[dtype]).max
    for name, weight in model.named_parameters():
        if weight.detach().abs().max().item() > most:
            raise ModelError(f"{name} has weights that {dtype} cannot hold; add --dtype bfloat16")
