"""Reads the weights of a GPT-NeoX from a GGUF file, an architecture that transformers 5.23 does not read from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.models.gguf.writing import names_of

ARCHITECTURE = "gptneox"


def read_neox(gguf_file: Path) -> Any:
    """The model, in float32 on the CPU. Raises what the package `gguf` raises at a damaged file."""
    from gguf import GGUFReader, dequantize
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    reader = GGUFReader(gguf_file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def value(key: str) -> Any:
        return reader.fields[f"{ARCHITECTURE}.{key}"].contents()

    heads = value("attention.head_count")
    config = GPTNeoXConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[-1]),
        hidden_size=value("embedding_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        intermediate_size=value("feed_forward_length"),
        max_position_embeddings=value("context_length"),
        layer_norm_eps=value("attention.layer_norm_epsilon"),
        use_parallel_residual=value("use_parallel_residual"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": value("rope.freq_base"),
            "partial_rotary_factor": value("rope.dimension_count") * heads / value("embedding_length"),
        },
        tie_word_embeddings="output.weight" not in tensors,
        architectures=["GPTNeoXForCausalLM"],
    )
    model = GPTNeoXForCausalLM(config).float().eval()
    for name, weight in names_of(model):
        values = torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type).copy())
        weight.copy_(_headwise(values, heads) if ".attn_qkv." in name else values)
    return model


def _headwise(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """All queries, all keys and all values (3 · heads · d × …) as query, key and value of each head."""
    rows = weight.shape[0]
    return weight.reshape(3, heads, rows // heads // 3, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)
