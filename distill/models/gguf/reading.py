"""Reads GGUF through transformers, and restores what that loses: pre-tokenizer, pad token, rotary scaling."""

from __future__ import annotations

import io
import mmap
import re
import struct
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from distill.core.bounded_memory import bounded_memory
from distill.core.model_files import MOST_LAYERS
from distill.errors import MissingPackage, ModelError
from distill.models import pretrained
from distill.models.gguf.neox import ARCHITECTURE, read_neox
from distill.models.gguf.rope import llama3_parameters
from distill.models.third_party import first_line

PAD_TOKENS = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|PAD_TOKEN|>", "<unk>")
"""Reserved tokens that may serve as padding, in order of preference."""

_RESERVED = re.compile(r"\bpad\b|reserved|unused", re.IGNORECASE)
"""Matches the names of tokens that models reserve and do not use."""

_FACTORS = b"rope_freqs.weight"
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 10: 8, 11: 8}
"""Bytes of the integer types, in GGUF's numbering."""
MOST_BYTES, MOST_RATIO = 1_000_000_000, 32
"""Memory that reading may take, with imports, and per byte of the file, whose weights of 1.5 bits become 32."""


def read_gguf(gguf: Path) -> tuple[Any, Any]:
    """The model, in float32 on the CPU, and the tokenizer of a GGUF file.

    Raises `ModelError` when the file is damaged, of an unknown architecture, or scales its rotary frequencies in an
    unknown way, `MissingPackage` without the package `gguf`.
    """
    try:
        import gguf as gguf_package  # noqa: F401 - transformers reads the file with it
    except ImportError as error:
        raise MissingPackage("a .gguf file is read with the package `gguf`; pip install gguf") from error
    _require_layers(gguf)
    model, tokenizer = _read(gguf)
    model.hf_quantizer = None  # the weights are dequantised, and transformers would refuse to cast and save GGUF ones
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _mend_rotary(model, gguf)
    if _text(gguf, "tokenizer.ggml.model") == "llama":
        _place_spaces(tokenizer, _after(gguf, b"tokenizer.ggml.add_space_prefix" + struct.pack("<I", 7), 1) != b"\0")
    _repair_tokenizer(tokenizer, _text(gguf, "tokenizer.ggml.pre"), model.config.max_position_embeddings)
    return model, tokenizer


def _read(gguf: Path) -> tuple[Any, Any]:
    """Model and tokenizer as transformers reads them, from a temporary folder with no other files."""
    # AutoTokenizer parses the whole file for a configuration that a byte-level BPE does not need: 4 s of 10.
    kind = "PreTrainedTokenizerFast" if _text(gguf, "tokenizer.ggml.model") == "gpt2" else "AutoTokenizer"
    with tempfile.TemporaryDirectory() as alone, redirect_stderr(io.StringIO()):
        folder, name = Path(alone), "model.gguf"
        (folder / name).symlink_to(gguf.resolve())
        try:
            with bounded_memory(MOST_BYTES + MOST_RATIO * gguf.stat().st_size):
                tokenizer = pretrained.load_tokenizer(folder, kind, gguf_file=name)
                if _text(gguf, "general.architecture") == ARCHITECTURE:
                    with pretrained.only_data(folder, "model"):
                        return read_neox(folder / name), tokenizer
                model = pretrained.load_model(folder, "AutoModelForCausalLM", gguf_file=name, dtype=torch.float32)
        except ModelError as error:
            reason = first_line(error.__cause__, alone) if error.__cause__ else str(error).replace(alone, "it")
            raise ModelError(
                f"{gguf} cannot be read as GGUF ({reason}); it is damaged or of an unknown kind"
            ) from error
        return model, tokenizer


def _require_layers(gguf: Path) -> None:
    """Raise `ModelError` for a number of layers that no model has: all of them are built before a weight is read."""
    if not gguf.stat().st_size:
        return
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        entries = re.findall(rb"\.block_count(....)(.{8})", content, re.DOTALL)
    for kind, value in entries:
        count = int.from_bytes(value[: _WIDTHS.get(int.from_bytes(kind, "little"), 0)], "little")
        if not 1 <= count <= MOST_LAYERS:
            raise ModelError(f"{gguf} says block_count: {count:,}; expected 1 to {MOST_LAYERS:,}")


def _mend_rotary(model: Any, gguf: Path) -> None:
    """Restore Llama 3's rotary scaling, which GGUF stores as factors and transformers 5.23 ignores."""
    if _after(gguf, _FACTORS) is None:
        return
    from gguf import GGUFReader

    tensor = next((one for one in GGUFReader(gguf).tensors if one.name == _FACTORS.decode()), None)
    if tensor is None:
        return
    parameters = llama3_parameters(torch.tensor(tensor.data.copy()), model.config)
    if parameters is None:
        raise ModelError(f"{gguf} scales its rotary frequencies in a way that is unknown here; use its safetensors")
    model.config.rope_parameters = parameters
    rotary = model.base_model.rotary_emb
    model.base_model.rotary_emb = type(rotary)(config=model.config)


def _after(gguf: Path, name: bytes, size: int = 0) -> bytes | None:
    """Up to `size` bytes after a name in the file, `None` without that name; parsing the file would take seconds."""
    if not gguf.stat().st_size:
        return None  # mmap refuses an empty file
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(name)
        return None if at < 0 else content[at + len(name) : at + len(name) + size]


def _text(gguf: Path, key: str) -> str:
    """The text under a key, such as llama.cpp's name of the pre-tokenizer; empty where there is none."""
    value = _after(gguf, key.encode() + struct.pack("<I", 8), 8 + 64)  # 8: the value is a string, its length first
    if value is None:
        return ""
    length = int.from_bytes(value[:8], "little")
    return value[8 : 8 + min(length, 64)].decode(errors="replace")


def _place_spaces(tokenizer: Any, prefix: bool) -> None:
    """Write ▁ as llama.cpp does: also before a text and behind each special token, or only for the spaces there are."""
    from tokenizers import normalizers

    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.backend_tokenizer.pre_tokenizer = None


def _repair_tokenizer(tokenizer: Any, pre: str, context: int) -> None:
    r"""Restore what transformers' GGUF conversion loses: the splitting of digits, the pad token and the context length.

    SmolLM splits off each digit before the byte-level rule applies (llama.cpp calls that pre-tokenizer `smollm`);
    otherwise "\n\n1." gets different ids than in the model's training.
    """
    from tokenizers import pre_tokenizers

    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.model_max_length = context
    part_pad_from_eos(tokenizer)


def part_pad_from_eos(tokenizer: Any) -> None:
    """Give the tokenizer a pad token that differs from the end token, where the vocabulary reserves one.

    With pad = eos, trainers that mask padding by its id teach a student never to stop (trl#1623, #3083, #3091). Here
    padding is masked by position. Without a reserved token, eos stays: any other token would be lost from answers.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    others = {tokenizer.eos_token, tokenizer.bos_token}
    vocabulary = tokenizer.get_vocab()
    reserved = [token.content for token in tokenizer.added_tokens_decoder.values() if _RESERVED.search(token.content)]
    free = [token for token in (*PAD_TOKENS, *reserved) if token in vocabulary and token not in others]
    if free:
        tokenizer.pad_token = free[0]
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
