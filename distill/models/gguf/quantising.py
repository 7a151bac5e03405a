"""Types of a GGUF file's tensors, and their quantisation: Q8_0 in NumPy, K-quants by llama.cpp's own quantiser.

The mixes of types are those of llama.cpp's `llama-quantize` (src/llama-quant.cpp, `llama_tensor_get_type_impl`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import MissingPackage, ModelError

FLOATS = {"float32": "F32", "float16": "F16"}
MIXES = {"q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K"}
"""Type of most matrices, by the name of a quantisation; the largest file first."""
DTYPES = (*FLOATS, *MIXES)
FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
"""`general.file_type`, in llama.cpp's numbering (`llama_ftype`)."""
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Types for rows that are no multiple of the 256 weights of a K-quant's block."""
_SENSITIVE = ("attn_v.weight", "attn_qkv.weight", "ffn_down.weight")
"""Tensors that the mixes `_m` store in Q6_K in half of the layers."""
_BY_NUMPY = ("F32", "F16", "Q8_0")
_LARGEST_HALF = 65_504


def kind_of(name: str, shape: tuple[int, ...], dtype: str, *, layers: int, tied: bool) -> tuple[str, bool]:
    """The type of a tensor, such as `Q4_K`, and whether its shape rules out the one that the mix has for it.

    `shape` ends with the length of a row; `tied` says that the token embedding is the output as well.
    """
    if len(shape) < 2:
        return "F32", False
    if dtype in FLOATS:
        return FLOATS[dtype], False
    wanted = _wanted(name, dtype, layers=layers, tied=tied)
    possible = (wanted, _FALLBACK.get(wanted, "F16"), "F16")
    kind = next(kind for kind in possible if shape[-1] % _block(kind) == 0)
    return kind, kind != wanted


def _wanted(name: str, dtype: str, *, layers: int, tied: bool) -> str:
    if not dtype.endswith("_m"):
        return MIXES[dtype]
    is_output = name == ("token_embd.weight" if tied else "output.weight")
    is_sensitive = name.endswith(_SENSITIVE) and _takes_more_bits(int(name.split(".")[1]), layers)
    return "Q6_K" if is_output or is_sensitive else MIXES[dtype]


def _takes_more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _block(kind: str) -> int:
    """Weights per block of a type."""
    import gguf

    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0])


def quantised(name: str, values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """A tensor in its stored form, quantised ones as bytes; `values` are in float32 and contiguous.

    Raises `ModelError` where float16 cannot hold a weight.
    """
    import gguf

    if kind == "F16" and abs(values).max() > _LARGEST_HALF:
        raise ModelError(f"{name} has weights that float16 cannot hold; add --dtype float32")
    if kind in _BY_NUMPY:
        result: NDArray[Any] = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
        return result
    type_ = gguf.GGMLQuantizationType[kind]
    rows, width = values.size // values.shape[-1], values.shape[-1]
    target = np.empty(gguf.quants.quant_shape_to_byte_shape(values.shape, type_), dtype=np.uint8)
    quantiser()(type_.value, values.ctypes.data, target.ctypes.data, 0, rows, width, None)
    return target


@cache
def quantiser() -> Callable[..., int]:
    """llama.cpp's `ggml_quantize_chunk(type, source, target, first weight, rows, weights per row, importance)`.

    Raises `MissingPackage` where the package that holds it is missing or has it no more.
    """
    try:
        from xllamacpp import xllamacpp

        function = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    except (ImportError, OSError, AttributeError) as error:
        raise MissingPackage(
            "K-quants are made by llama.cpp's own quantiser; type: pip install 'xllamacpp>=2026.10', or use --quantise"
            " q8_0"
        ) from error
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]
    function.restype = ctypes.c_size_t
    return function


def require(dtype: str) -> None:
    """Raise `MissingPackage` where a dtype's quantiser is missing."""
    if MIXES.get(dtype, "F16") not in _BY_NUMPY:
        quantiser()


def counted(kinds: Mapping[str, tuple[str, bool]]) -> tuple[dict[str, int], int]:
    """Matrices per type, and how many of them fell back to another, of the results of `kind_of` by name."""
    matrices = [kind for kind in kinds.values() if kind[0] != "F32"]
    names = sorted({name for name, _ in matrices})
    return {name: sum(kind == name for kind, _ in matrices) for name in names}, sum(fell for _, fell in matrices)
