"""Writes a PEFT adapter, and its base where that is pruned or a local file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from distill.core.files import read_json, write_json
from distill.errors import ModelError
from distill.formats.exporters.student.merged import write_tokenizer, write_whole
from distill.formats.exporters.student.receipt import Watch
from distill.formats.exporters.student.source import StudentFolder, base_name
from distill.models import loading

BASE = "base"
"""Name of the base's folder, inside that of the adapter."""
_WEIGHTS = "adapter_model.safetensors"


def write_adapter(student: StudentFolder, folder: Path, dtype: str, watch: Watch) -> None:
    """Write the adapter into an existing folder, and the dequantised base in `dtype`.

    A base that is on the Hub is named, not copied.
    """
    settings = read_json(student.folder / "adapter_config.json")
    settings["base_model_name_or_path"] = base_name(student.info) or BASE
    settings["inference_mode"] = True
    shutil.copyfile(student.folder / _WEIGHTS, folder / _WEIGHTS)
    write_json(folder / "adapter_config.json", settings)
    write_tokenizer(student, folder)
    if base_name(student.info) is None:
        (folder / BASE).mkdir()
        write_whole(student, student.base(), folder / BASE, dtype)


def require_adapter(student: StudentFolder) -> None:
    """Raise `ModelError` for a fully trained student, which has no adapter."""
    if not student.is_adapter:
        raise ModelError(f"the student in {student.folder} was trained whole and has no adapter; use --to merged")


def load_adapter(student: StudentFolder, folder: Path) -> tuple[Any, Any]:
    """Model (base and adapter, computing in float32) and tokenizer, loaded as by any user."""
    is_beside = (folder / BASE).is_dir()
    base = loading.load_causal(
        folder / BASE if is_beside else student.weights,
        quantise=bool(student.info["quantised"]) and not is_beside,
        dtype=torch.float32,
        device=student.device,
    )
    return loading.adapted(base, folder, merge=False).eval(), loading.load_tokenizer(folder)
