"""Writes merged weights that load with plain transformers and stop where they stopped in training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from distill.errors import ModelError
from distill.formats.exporters.student.portable import rewrite_config, rewrite_tokenizer_config
from distill.formats.exporters.student.receipt import Watch
from distill.formats.exporters.student.source import FLOATS, StudentFolder
from distill.formats.exporters.student.tensors import left_out, tensor_names
from distill.models import chat_template, loading, pretrained
from distill.models.third_party import quietly

SHARD = "4GB"
"""Largest size of a file of weights."""
_FIVE_ALONE = "its rotary settings are written as transformers 5 alone reads them"


def write_merged(student: StudentFolder, folder: Path, dtype: str, watch: Watch) -> list[str]:
    """Write the student with its adapter merged; returns remarks. Raises `ModelError` as `write_whole`."""
    return write_whole(student, student.merged(), folder, dtype)


def load_merged(student: StudentFolder, folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer as the card loads them: by `from_pretrained`, in its default dtype."""
    model = pretrained.load_model(folder, "AutoModelForCausalLM", device_map={"": student.device})
    return model.eval(), loading.load_tokenizer(folder)


def write_whole(student: StudentFolder, model: Any, folder: Path, dtype: str) -> list[str]:
    """Write weights, configuration, end tokens, tokenizer and chat template into an existing folder.

    Returns remarks on what other programs lack. Raises `ModelError` where `dtype` cannot hold a weight.
    """
    _require_room(model, dtype)
    model = model.to(device="cpu", dtype=FLOATS[dtype])
    model.hf_quantizer = None  # the weights are no longer quantised
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _set_end_tokens(model, student)
    with quietly():
        model.save_pretrained(folder, max_shard_size=SHARD)
    write_tokenizer(student, folder)
    remarks = [] if rewrite_config(folder / "config.json", dtype) else [_FIVE_ALONE]
    return remarks + left_out(student.original, tensor_names(folder))


def write_tokenizer(student: StudentFolder, folder: Path) -> None:
    """Write the tokenizer with the chat template that the student was trained with, and SentencePiece's own file.

    llama.cpp's converter needs that file: without it, it gives all pieces one score.
    """
    student.tokenizer.chat_template = chat_template.jinja(student.template, student.tokenizer)
    with quietly():
        student.tokenizer.save_pretrained(folder)
    rewrite_tokenizer_config(folder / "tokenizer_config.json", student.tokenizer)
    if student.original is not None and (model := student.original / "tokenizer.model").is_file():
        shutil.copyfile(model, folder / model.name)


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
