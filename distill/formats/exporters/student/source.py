"""Reads the student to export: its metadata, and its weights in the forms that exports need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.core import model_files
from distill.core.weights import read_base
from distill.errors import ModelError
from distill.models import chat_template, loading, pretrained
from distill.models.device import default_device, free_bytes

FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Storage dtypes of weights."""
RESERVE_BYTES = 2 * 10**9
"""GPU memory kept free for activations and logits."""


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
    """The system message with which all training rows began."""

    @property
    def template(self) -> str:
        """Chat template used in training."""
        return str(self.info["template"])

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter on a base; otherwise its folder holds whole weights."""
        return (self.folder / "adapter_config.json").is_file()

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer, the trained one first."""
        return chat_template.end_ids(self.template, self.tokenizer)

    @property
    def end_tokens(self) -> list[str]:
        """The texts of those tokens."""
        return [str(self.tokenizer.convert_ids_to_tokens(id_)) for id_ in self.end_ids]

    @property
    def context(self) -> int:
        """Length of the context, in tokens."""
        return int(getattr(self.config(), "max_position_embeddings", None) or 1 << 30)

    @property
    def weights(self) -> Path:
        """The folder with whole weights: its own, or that of its base."""
        return loading.materialise(str(self.info["model"])) if self.is_adapter else self.folder

    @property
    def original(self) -> Path | None:
        """The folder of its base; `None` where that is not on this machine, as of a student that was trained whole."""
        return self.weights if self.is_adapter else model_files.local_folder(str(self.info["model"]))

    @property
    def device(self) -> torch.device:
        """The GPU if all weights fit there in float32, else the CPU."""
        device, free = default_device(), free_bytes(default_device())
        sixteen_bits = sum(file.stat().st_size for file in self.weights.glob("*.safetensors"))
        is_full = free is not None and free < 2.2 * sixteen_bits + RESERVE_BYTES
        return torch.device("cpu") if is_full else device

    def trained(self) -> Any:
        """As it was trained, such as an adapter on 4-bit weights; computes in float32."""
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


def read_student(folder: Path, *, name: str, system: str | None = None) -> StudentFolder:
    """The student in a folder. Raises `ModelError` where there is none, or where it holds pickles."""
    info = read_base(folder)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        why = f"holds {pickles[0]}, a pickle that can run code" if pickles else "holds no *.safetensors"
        raise ModelError(f"{folder} {why}; train the student again")
    return StudentFolder(folder, name, info, loading.load_tokenizer(folder), system)


def base_name(info: dict[str, Any]) -> str | None:
    """The Hub id of the base, if it is the whole model of the Hub; `None` for a local or pruned base."""
    is_on_hub = str(info["fingerprint"]).startswith("hub:") and info["layers"] is None
    return str(info["model"]) if is_on_hub else None
