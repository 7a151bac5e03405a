"""A run folder with a tiny student that was really trained, for tests of what is made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from distill.core.jsonl import write_rows
from distill.types import Message, Session
from tests.support.run_folder import write_run
from tests.support.training import SESSIONS, options, run

HELD_OUT = [
    Session(f"t{i}", (Message("user", f"Number {i}?"), Message("assistant", f"{i} is red, I say."))) for i in range(6)
]


def write_trained_run(folder: Path, model: str, *, layers: int | None = None, **changes: Any) -> Path:
    """A run whose student has learned its 24 short answers, and to stop behind them."""
    write_run(folder, prompts=6)
    write_rows(folder / "kept.jsonl", SESSIONS)
    write_rows(folder / "test.jsonl", HELD_OUT)
    shutil.rmtree(folder / "student")
    chosen = options(**{"epochs": 6, "batch_tokens": 100, "learning_rate": 1e-2, **changes})
    run(folder / "student", model, options=chosen, layers=layers)
    return folder


def receipt_of(folder: Path) -> dict[str, Any]:
    """An export's receipt."""
    found: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return found


def save_loud_model(folder: Path, *, layers: int = 3) -> str:
    """A tiny base whose logits are far apart, so that it learns fast and that faults of an export show."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.support.tiny import save_tiny_model

    save_tiny_model(folder, layers=layers)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.get_input_embeddings().weight.data *= 20
    model.save_pretrained(folder)
    return str(folder)
