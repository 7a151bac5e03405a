"""Writes a model with its tokenizer and chat template as one GGUF file, as llama.cpp reads it.

Format: github.com/ggml-org/ggml, docs/gguf.md; names of tensors and keys: the package `gguf`. llama.cpp rotates the
halves of a head in interleaved order where transformers rotates them one after the other, so the rows of a Llama's
query and key projections are written in another order (convert_hf_to_gguf.py, `LlamaModel.permute`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import MissingPackage, ModelError
from distill.models import chat_template
from distill.models.gguf import quantising
from distill.models.gguf.rope import head_size, llama3_factors, parameters_of
from distill.models.gguf.support import ARCHITECTURES, require_supported
from distill.models.gguf.vocabulary import Vocabulary, read_vocabulary


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    *,
    template: str,
    name: str,
    dtype: str = "float16",
    watch: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[str, bool]]:
    """Write `model` (on the CPU, any float dtype) to `path`; returns by tensor what `quantising.kind_of` gives.

    `template` is a chat template (one of `chat_template.TEMPLATES`); `dtype` is one of `quantising.DTYPES`, for
    matrices: vectors are always float32. `watch` gets the number of tensors written and of all. Raises `ModelError` for
    an unsupported architecture, rotary scaling or tokenizer, `MissingPackage` without a quantiser.
    """
    gguf = _package()
    config = model.config
    require_supported(config.to_dict(), json.loads(tokenizer.backend_tokenizer.to_str()))
    quantising.require(dtype)
    vocabulary = read_vocabulary(tokenizer, rows=model.get_input_embeddings().weight.shape[0])
    writer = gguf.GGUFWriter(path, ARCHITECTURES[type(model).__name__])
    kinds = {}
    try:
        _describe(writer, config, name=name, dtype=dtype)
        _write_vocabulary(writer, vocabulary, tokenizer, template)
        tensors = list(names_of(model))
        if (factors := llama3_factors(config)) is not None:
            tensors.append(("rope_freqs.weight", factors))
        tied = bool(config.tie_word_embeddings)
        for file_name, weight in tensors:
            kinds[file_name] = quantising.kind_of(
                file_name, tuple(weight.shape), dtype, layers=config.num_hidden_layers, tied=tied
            )
            _announce(writer, file_name, tuple(weight.shape), kinds[file_name][0], gguf)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (file_name, weight) in enumerate(tensors, start=1):
            values = _ordered(file_name, weight, config).detach().float().cpu().contiguous().numpy()
            writer.write_tensor_data(quantising.quantised(file_name, values, kinds[file_name][0]))
            if watch is not None:
                watch(done, len(tensors))
    finally:
        writer.close()
    return kinds


def differences(config: Any) -> list[str]:
    """What llama.cpp computes otherwise than transformers, in a file of this model."""
    window = getattr(config, "sliding_window", None)
    if ARCHITECTURES[config.architectures[0]] == "llama" and window and window < config.max_position_embeddings:
        return [f"llama.cpp attends to all earlier tokens of this architecture, and the student to the last {window:,}"]
    return []


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingPackage("a .gguf file is written with the package `gguf`; pip install gguf") from error
    return gguf


# Metadata


def _describe(writer: Any, config: Any, *, name: str, dtype: str) -> None:
    """Write sizes and settings of the architecture."""
    rope = parameters_of(config)
    writer.add_name(name)
    writer.add_file_type(quantising.FILE_TYPES[dtype])
    writer.add_quantization_version(2)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_rope_dimension_count(int(head_size(config) * rope.get("partial_rotary_factor", 1.0)))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)


def _write_vocabulary(writer: Any, vocabulary: Vocabulary, tokenizer: Any, template: str) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.space_prefix)
    else:
        writer.add_token_merges(list(vocabulary.merges))
    ends = chat_template.end_ids(template, tokenizer)
    special = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        "eot": ends[0] if ends[0] != tokenizer.eos_token_id else None,
    }
    for name, id_ in special.items():
        if id_ is not None:
            getattr(writer, f"add_{name}_token_id")(id_)
    writer.add_add_bos_token(chat_template.starts_with_bos(tokenizer))
    writer.add_chat_template(chat_template.jinja(template, tokenizer))


# Weights


def names_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Each tensor with its name in the file, tied ones once. Raises `ModelError` where llama.cpp has none."""
    import gguf

    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[type(model).__name__])
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    tied = bool(model.config.tie_word_embeddings)
    for name, weight in model.state_dict().items():
        if tied and name in ("lm_head.weight", "embed_out.weight"):
            continue
        file_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if file_name is None:
            raise ModelError(f"no GGUF can be written: llama.cpp has no name for the tensor {name}; use --to merged")
        yield file_name, weight


def _ordered(file_name: str, weight: Any, config: Any) -> Any:
    """The tensor with its rows in llama.cpp's order."""
    part = file_name.split(".")[2] if file_name.startswith("blk.") else ""
    if part == "attn_qkv":
        return parted(weight, config.num_attention_heads)
    if ARCHITECTURES[config.architectures[0]] != "llama" or part not in ("attn_q", "attn_k"):
        return weight
    return permuted(weight, config.num_attention_heads if part == "attn_q" else config.num_key_value_heads)


def permuted(weight: Any, heads: int) -> Any:
    """A weight, heads · d × …, with the rows of each head interleaved: 0, d/2, 1, d/2 + 1 …"""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def parted(weight: Any, heads: int) -> Any:
    """A weight, heads · 3 · d × …, with query, key and value of each head, as all queries, all keys, all values."""
    rows = weight.shape[0]
    return weight.reshape(heads, 3, rows // heads // 3, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)


def _announce(writer: Any, file_name: str, shape: tuple[int, ...], kind: str, gguf: Any) -> None:
    """Declare a tensor's shape and type, which come before all data in the file."""
    if kind in ("F32", "F16"):
        type_ = np.dtype("float32" if kind == "F32" else "float16")
        writer.add_tensor_info(file_name, shape, type_, math.prod(shape) * type_.itemsize)
        return
    raw = gguf.GGMLQuantizationType[kind]
    stored = gguf.quants.quant_shape_to_byte_shape(shape, raw)
    writer.add_tensor_info(file_name, stored, np.dtype("uint8"), math.prod(stored), raw_dtype=raw)
