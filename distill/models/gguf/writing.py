"""Writes a model with its tokenizer and chat template as one GGUF file, as llama.cpp reads it.

Format: github.com/ggml-org/ggml, docs/gguf.md; names of tensors and keys: the package `gguf`. llama.cpp rotates the
halves of a head in interleaved order where transformers rotates them one after the other, so the rows of a Llama's
query and key projections are written in another order (convert_hf_to_gguf.py, `LlamaModel.permute`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distill.errors import MissingPackage, ModelError
from distill.models import chat_template
from distill.models.gguf.rope import head_size, llama3_factors, parameters_of
from distill.models.gguf.vocabulary import Vocabulary, read_vocabulary

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""llama.cpp's names of the supported architectures."""
DTYPES = ("float16", "float32", "q8_0")
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7}
"""`general.file_type`, in llama.cpp's numbering (`llama_ftype`)."""
_BLOCK = 32
"""Weights per block of Q8_0."""


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    *,
    template: str,
    name: str,
    dtype: str = "float16",
    watch: Callable[[int, int], None] | None = None,
) -> None:
    """Write `model` (on the CPU, any float dtype) to `path`; `watch` gets the number of tensors written and of all.

    `template` is a chat template (one of `chat_template.TEMPLATES`); `dtype` is one of `DTYPES`, for matrices: vectors
    are always float32. Raises `ModelError` for an unsupported architecture, rotary scaling or tokenizer.
    """
    gguf = _package()
    require_supported(model.config, tokenizer)
    config = model.config
    vocabulary = read_vocabulary(tokenizer, rows=model.get_input_embeddings().weight.shape[0])
    writer = gguf.GGUFWriter(path, ARCHITECTURES[type(model).__name__])
    try:
        _describe(writer, config, name=name, dtype=dtype)
        _write_vocabulary(writer, vocabulary, tokenizer, template)
        tensors = list(_names(model, gguf))
        for file_name, weight in tensors:
            _announce(writer, file_name, weight, dtype, gguf)
        if (factors := llama3_factors(config)) is not None:
            _announce(writer, "rope_freqs.weight", factors, "float32", gguf)
            tensors.append(("rope_freqs.weight", factors))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (file_name, weight) in enumerate(tensors, start=1):
            writer.write_tensor_data(_values(file_name, _ordered(file_name, weight, config), dtype, gguf))
            if watch is not None:
                watch(done, len(tensors))
    finally:
        writer.close()


def require_supported(config: Any, tokenizer: Any) -> None:
    """Raise `ModelError` for a model that cannot be written."""
    name = (config.architectures or ["?"])[0]
    if name not in ARCHITECTURES:
        raise ModelError(
            f"no GGUF can be written of a {name}; there is {', '.join(ARCHITECTURES)}: use --to merged, and llama.cpp's"
            " own converter on that folder"
        )
    scaling = parameters_of(config).get("rope_type", "default")
    if scaling not in ("default", "llama3"):
        raise ModelError(f'no GGUF can be written of rotary scaling "{scaling}"; use --to merged')
    read_vocabulary(tokenizer, rows=len(tokenizer))


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
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_quantization_version(2)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_rope_dimension_count(head_size(config))


def _write_vocabulary(writer: Any, vocabulary: Vocabulary, tokenizer: Any, template: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
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


def _names(model: Any, gguf: Any) -> Iterator[tuple[str, Any]]:
    """Each tensor with its name in the file, tied ones once. Raises `ModelError` where llama.cpp has none."""
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[type(model).__name__])
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    tied = bool(model.config.tie_word_embeddings)
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        file_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if file_name is None:
            raise ModelError(f"no GGUF can be written: llama.cpp has no name for the tensor {name}; use --to merged")
        yield file_name, weight


def _ordered(file_name: str, weight: Any, config: Any) -> Any:
    """The tensor with its rows in llama.cpp's order."""
    if ARCHITECTURES[config.architectures[0]] != "llama":
        return weight
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = file_name.split(".")[2] if file_name.startswith("blk.") else ""
    return permuted(weight, heads[part]) if part in heads else weight


def permuted(weight: Any, heads: int) -> Any:
    """A weight, heads · d × …, with the rows of each head interleaved: 0, d/2, 1, d/2 + 1 …"""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _announce(writer: Any, file_name: str, weight: Any, dtype: str, gguf: Any) -> None:
    """Declare a tensor's shape and type, which come before all data in the file."""
    kind = _kind(weight, dtype, gguf)
    shape = tuple(weight.shape)
    if kind == gguf.GGMLQuantizationType.Q8_0:
        shape = gguf.quants.quant_shape_to_byte_shape(shape, kind)
        size = math.prod(shape)
        writer.add_tensor_info(file_name, shape, _numpy("uint8"), size, raw_dtype=kind)
    else:
        name = "float32" if kind == gguf.GGMLQuantizationType.F32 else "float16"
        writer.add_tensor_info(file_name, shape, _numpy(name), math.prod(shape) * _numpy(name).itemsize)


def _numpy(name: str) -> Any:
    import numpy as np

    return np.dtype(name)


def _kind(weight: Any, dtype: str, gguf: Any) -> Any:
    kinds = gguf.GGMLQuantizationType
    if weight.dim() < 2 or dtype == "float32":
        return kinds.F32
    return kinds.Q8_0 if dtype == "q8_0" and weight.shape[-1] % _BLOCK == 0 else kinds.F16


def _values(file_name: str, weight: Any, dtype: str, gguf: Any) -> Any:
    """The tensor as a NumPy array in its stored form; Q8_0 as bytes."""
    kind = _kind(weight, dtype, gguf)
    values = weight.detach().float().cpu().contiguous().numpy()
    if kind == gguf.GGMLQuantizationType.F16 and abs(values).max() > 65_504:
        raise ModelError(f"{file_name} has weights that float16 cannot hold; add --dtype float32")
    return gguf.quants.quantize(values, kind)
