"""Writes merged weights that load with plain transformers and stop where they stopped in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.core.files import read_json, write_json
from distill.errors import ModelError
from distill.formats.exporters.student.source import FLOATS, StudentFolder
from distill.models import chat_template
from distill.models.third_party import quietly

SHARD = "4GB"
"""Largest file of weights."""


def write_whole(student: StudentFolder, model: Any, folder: Path, *, dtype: str) -> None:
    """Write weights, configuration, end tokens, tokenizer and chat template into an existing folder.

    float16 keeps a merged weight best for its size, and bfloat16 is what it is computed in unless its reader says
    otherwise. Raises `ModelError` where `dtype` cannot hold a weight.
    """
    _require_room(model, dtype)
    model = model.to(device="cpu", dtype=FLOATS[dtype])
    model.hf_quantizer = None  # the weights are plain by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _settle_ends(model, student)
    with quietly():
        model.save_pretrained(folder, max_shard_size=SHARD)
    config = read_json(folder / "config.json")
    for key in ("_name_or_path", "_model_name_or_path"):
        config.pop(key, None)  # of its base
    config["dtype"] = "bfloat16" if dtype == "float16" else dtype  # no activation overflows that
    write_json(folder / "config.json", config)
    write_tokenizer(student, folder)


def write_tokenizer(student: StudentFolder, folder: Path) -> None:
    """Write the tokenizer with the chat template that the student was trained with."""
    student.tokenizer.chat_template = chat_template.jinja(student.template, student.tokenizer)
    with quietly():
        student.tokenizer.save_pretrained(folder)
    settings = read_json(folder / "tokenizer_config.json")
    for key in ("name_or_path", "is_local", "local_files_only"):
        settings.pop(key, None)  # of this machine
    write_json(folder / "tokenizer_config.json", settings)


def _settle_ends(model: Any, student: StudentFolder) -> None:
    """Have `generate` stop at the tokens that ended answers in training, and sample as its caller says."""
    from transformers import GenerationConfig

    ends = student.end_ids
    tokenizer = student.tokenizer
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
