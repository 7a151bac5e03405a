"""Saves a trained student: weights, tokenizer, chat template, and last its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.core import processes
from distill.core.files import set_usual_modes, write_json
from distill.models import chat_template
from distill.train.lora import save_adapter
from distill.train.sft_trainer import Trainer

WEIGHTS = ("adapter_model*", "adapter_config.json", "model*.safetensors*", "config.json", "generation_config.json")
"""Files that an interrupted save may have left."""


def save(
    trainer: Trainer, tokenizer: Any, template: str, info: dict[str, Any], folder: Path, *, first: dict[str, Any] | None
) -> None:
    """Write the student; base.json comes last, as its presence marks a complete student.

    `info` is the content of base.json; `first` is the initial adapter where it was subtracted from the base.
    """
    state = _gathered(trainer)
    if not processes.is_first():
        return
    (folder / "base.json").unlink(missing_ok=True)
    for stale in (file for pattern in WEIGHTS for file in folder.glob(pattern)):
        stale.unlink()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if info["method"] == "full":
        _save_whole(model, folder, state, dtype=torch.bfloat16 if trainer.args.bf16 else torch.float32)
    else:
        save_adapter(model, folder, base=info["model"], first=first, state=state)
    tokenizer.chat_template = chat_template.jinja(template, tokenizer)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    set_usual_modes(folder)
    write_json(folder / "base.json", info)


def _gathered(trainer: Trainer) -> dict[str, Any] | None:
    """All weights, on the first process, of a sharded model; else None. Every process must call it."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return dict(trainer.accelerator.get_state_dict(trainer.model_wrapped))
    return None


def _save_whole(model: Any, folder: Path, state: dict[str, Any] | None, *, dtype: torch.dtype) -> None:
    """Write all weights in `dtype`, and enable the cache again, which training disables."""
    weights = model.state_dict() if state is None else state
    model.config.use_cache = True
    model.config.dtype = dtype
    model.save_pretrained(folder, state_dict={name: tensor.to(dtype) for name, tensor in weights.items()})
