"""Writes a trained student: its adapter or all of its weights, its tokenizer and template, and last what it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from distill import chat
from distill.embedded import write_json
from distill.student.adapter import save_adapter
from distill.student.sft import Trainer

WEIGHTS = ("adapter_model*", "adapter_config.json", "model*.safetensors*", "config.json", "generation_config.json")
"""What a former student of another method may have left."""


def save(
    trainer: Trainer, tokenizer: Any, template: str, told: dict[str, Any], folder: Path, *, first: dict[str, Any] | None
) -> None:
    """Write the student beside and move it into place; base.json, without which nobody reads it, comes last.

    `told` goes there; `first` is the adapter as it began, where it was taken out of the base.
    """
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)
    if told["method"] == "full":
        _save_whole(trainer, new)
    else:
        save_adapter(trainer.model, new, base=told["model"], first=first)
    tokenizer.chat_template = chat.jinja(template, tokenizer)
    tokenizer.save_pretrained(new)
    (new / "README.md").unlink(missing_ok=True)
    (folder / "base.json").unlink(missing_ok=True)
    for stale in (file for pattern in WEIGHTS for file in folder.glob(pattern)):
        stale.unlink()
    for file in new.iterdir():
        file.replace(folder / file.name)
    new.rmdir()
    write_json(folder / "base.json", told)


def _save_whole(trainer: Trainer, folder: Path) -> None:
    """All weights, in what they were computed in; the cache, of no use in training, is switched on again."""
    model = trainer.model
    model.config.use_cache = True
    if trainer.args.bf16:
        model = model.bfloat16()
    model.save_pretrained(folder)
