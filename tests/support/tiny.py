"""A tiny random Llama with the real tokenizer, saved as a user would have it: a folder of safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path


def save_tiny_model(folder: Path, *, layers: int = 4, hidden: int = 64, seed: int = 0, tied: bool = True) -> Path:
    """Write the model to `folder`; its vocabulary is the embedded model's, its weights are random."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from distill.models import loading

    source = loading.materialise("smollm2")
    tokenizer = loading.load_tokenizer(source)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "vocab", "merges")):
            shutil.copy(file, folder / file.name)
    return folder
