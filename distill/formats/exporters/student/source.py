"""Reads the student to export: its metadata, and its weights in the forms that exports need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.core.files import read_json
from distill.core.weights import read_base
from distill.errors import ModelError
from distill.models import chat_template, loading, pretrained
from distill.models.device import default_device

FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Storage dtypes of weights."""
RESERVE_BYTES = 2 * 10**9
"""Bytes of a GPU kept free for activations and logits."""


@dataclass(frozen=True, slots=True)
class StudentFolder:
    """A trained student's folder."""

    folder: Path
    name: str
    """Name of its run."""
    info: dict[str, Any]
    """base.json."""
    tokenizer: Any
    system: str | None = None
    """The system message that all of its training began with."""

    @property
    def template(self) -> str:
        """Chat template used in training."""
        return str(self.info["template"])

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter beside a base; else its folder holds whole weights."""
        return (self.folder / "adapter_config.json").is_file()

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer, the trained one first."""
        return chat_template.end_ids(self.template, self.tokenizer)

    @property
    def context(self) -> int:
        """Tokens that it can read at once."""
        return int(getattr(self.config(), "max_position_embeddings", None) or 1 << 30)

    @property
    def weights(self) -> Path:
        """The folder with whole weights: its own, or that of its base."""
        return loading.materialise(str(self.info["model"])) if self.is_adapter else self.folder

    @property
    def device(self) -> torch.device:
        """Where it is read: the GPU, if all of its weights fit there in float32, else the CPU."""
        sixteen_bits = sum(file.stat().st_size for file in self.weights.glob("*.safetensors"))
        return fitting(default_device(), size=int(2.2 * sixteen_bits) + RESERVE_BYTES)

    def trained(self) -> Any:
        """As it was trained, such as an adapter beside 4-bit weights; computes in float32."""
        return self._read(adapter=True, merge=False)

    def merged(self) -> Any:
        """Whole weights in float32."""
        return self._read(adapter=True)

    def base(self) -> Any:
        """Its pruned base before training, dequantised, in float32."""
        return self._read(adapter=False)

    def _read(self, **what: bool) -> Any:
        return loading.load_student(self.folder, dtype=torch.float32, device=self.device, **what)[0]

    def config(self) -> Any:
        """The base's configuration."""
        return pretrained.load_config(self.weights)


def fitting(device: torch.device, *, size: int) -> torch.device:
    """The device, or the CPU where that has less than `needed` bytes free."""
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < size:
        return torch.device("cpu")
    return device


def read_student(folder: Path, *, name: str, system: str | None = None) -> StudentFolder:
    """The student in a folder. Raises `ModelError` where there is none, or where it holds pickles."""
    info = read_base(folder)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        why = f"holds {pickles[0]}, a pickle that can run code" if pickles else "holds no *.safetensors"
        raise ModelError(f"{folder} {why}; train the student again")
    return StudentFolder(folder, name, info, loading.load_tokenizer(folder), system)


def base_name(info: dict[str, Any]) -> str | None:
    """The Hub id of the base as it was trained on; None where it is local only."""
    settings = info if str(info["fingerprint"]).startswith("hub:") else {}
    return str(settings["model"]) if settings and info["layers"] is None else None


def peft_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json."""
    settings = read_json(folder / "adapter_config.json")
    return settings if isinstance(settings, dict) else {}
