"""Names and sizes of the tensors in a model's folder: what an export leaves out of its base, and the space it takes."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from distill.core.files import read_json
from distill.errors import RunFolderError
from distill.models.third_party import quietly

BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "q8_0": 1.07, "q6_k": 0.83, "q5_k_m": 0.74, "q4_k_m": 0.64}
"""Approximate bytes per weight; K-quants as of a small model, whose embedding has more bits."""
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")
_NO_WEIGHT = re.compile(r"inv_freq$|masked_bias$|\.attn\.bias$|attention\.bias$")
"""Tables of older checkpoints, which models compute."""


def tensor_names(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of all tensors in a folder's safetensors but those of an adapter; only headers are read."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith("adapter_"):
            continue
        with quietly(), safe_open(path, "np") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    return shapes


def left_out(original: Path | None, exported: Collection[str]) -> list[str]:
    """A remark on tensors of the base that have no place in the export, such as a vision tower; none where none has.

    Layers that were removed count as the ones that were kept.
    """
    if original is None:
        return []
    places = {_INDEX.sub("#", name) for name in exported}
    tied = bool((read_json(original / "config.json") or {}).get("tie_word_embeddings"))
    lost = {
        name: shape
        for name, shape in tensor_names(original).items()
        if _INDEX.sub("#", name) not in places
        and not _NO_WEIGHT.search(name)
        and not (tied and name.endswith("lm_head.weight"))
    }
    if not lost:
        return []
    parts = sorted({_INDEX.sub("#", name).split(".#.")[0] for name in lost})
    count = sum(map(math.prod, lost.values()))
    return [
        f"left out of the base, as transformers does not load it: {', '.join(parts[:4])}"
        f"{' …' if len(parts) > 4 else ''} ({count / 1e6:,.1f} million weights, tensors: {len(lost):,})"
    ]


def weights_in(folder: Path, layers: Collection[int] | None) -> int:
    """The number of weights of a model of which only `layers` are kept."""
    shapes = tensor_names(folder)
    indexes = {name: index for name in shapes if (index := _INDEX.search(name)) is not None}
    total = len({int(index[0]) for index in indexes.values()}) or 1
    share = 1.0 if layers is None else len(layers) / total
    return round(sum(math.prod(shape) * (share if name in indexes else 1.0) for name, shape in shapes.items()))


def require_space(out: Path, needed: float) -> None:
    """Raise `RunFolderError` where the file system of `out` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(out.absolute().parent).free
    if free < needed:
        raise RunFolderError(
            f"{out} needs about {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there; free some space, or"
            " give another --out"
        )
