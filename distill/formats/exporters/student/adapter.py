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
from distill.models import loading, pretrained
from distill.models.quantization import _nf4

BASE = "base"
"""Name of the base's folder, inside that of the adapter."""
_WEIGHTS = "adapter_model.safetensors"


def write_adapter(student: StudentFolder, folder: Path, dtype: str, watch: Watch) -> list[str]:
    """Write the adapter into an existing folder, and the dequantised base in `dtype`; returns remarks.

    A base that is on the Hub is named, not copied. Another is named by its path in the folder: PEFT's AutoPeftModel
    reads that from the working directory, and as it begins with a dot never as a repository on the Hub.
    """
    settings = read_json(student.folder / "adapter_config.json")
    settings["base_model_name_or_path"] = base_name(student.info) or f"./{BASE}"
    settings["inference_mode"] = True
    shutil.copyfile(student.folder / _WEIGHTS, folder / _WEIGHTS)
    write_json(folder / "adapter_config.json", settings)
    write_tokenizer(student, folder)
    if base_name(student.info) is not None:
        return []
    (folder / BASE).mkdir()
    return write_whole(student, student.base(), folder / BASE, dtype)


def require_adapter(student: StudentFolder) -> None:
    """Raise `ModelError` for a fully trained student, which has no adapter."""
    if not student.is_adapter:
        raise ModelError(f"the student in {student.folder} was trained whole and has no adapter; use --to merged")


def load_adapter(student: StudentFolder, folder: Path) -> tuple[Any, Any]:
    """Model (base and adapter) and tokenizer as the card loads them: by `from_pretrained`, in its default dtype."""
    is_beside = (folder / BASE).is_dir()
    is_quantised = bool(student.info["quantised"]) and not is_beside
    base = pretrained.load_model(
        folder / BASE if is_beside else student.weights,
        "AutoModelForCausalLM",
        device_map={"": student.device},
        **({"quantization_config": _nf4(torch.float32)} if is_quantised else {}),
    )
    return loading.adapted(base, folder, merge=False).eval(), loading.load_tokenizer(folder)
