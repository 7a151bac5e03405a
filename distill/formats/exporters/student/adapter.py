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

    A base that is on the Hub is named, not copied. Another is named by `place_base` once the folder has its path.
    """
    settings = read_json(student.folder / "adapter_config.json")
    settings["base_model_name_or_path"] = base_name(student.info) or BASE
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


def name_base(folder: Path, out: Path) -> None:
    """Name the base in `folder` by its path in `out`, where PEFT's AutoPeftModel finds it from any working directory.

    PEFT takes a relative path as one from the working directory, or else as a repository on the Hub.
    """
    if (folder / BASE).is_dir():
        settings = read_json(folder / "adapter_config.json")
        write_json(folder / "adapter_config.json", {**settings, "base_model_name_or_path": str(out.resolve() / BASE)})


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
