"""A small GGUF file of our own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HIDDEN, LAYERS, VOCABULARY = 32, 2, 96


TEXT = "In 2024, 3 of 10 students said:\n\n1. They don't like  naïve answers 🙂."


def make_gguf(path: Path, *, pre: str = "smollm", without: str | None = None) -> Path:
    """A Llama with random weights and a byte-pair tokenizer of a few tokens, as llama.cpp would have it."""
    import gguf

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz0123456789", "ab", "cd"]
    tokens += [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;?!'-", "\u0120", "\u010a"]  # the last two are a space and a line feed
    tokens += [f"<unused{n}>" for n in range(VOCABULARY - len(tokens))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HIDDEN // 4)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (VOCABULARY - 3))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        if name != without:
            writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))

    add("token_embd.weight", VOCABULARY, HIDDEN)
    add("output_norm.weight", HIDDEN)
    for n in range(LAYERS):
        add(f"blk.{n}.attn_norm.weight", HIDDEN)
        add(f"blk.{n}.ffn_norm.weight", HIDDEN)
        add(f"blk.{n}.attn_q.weight", HIDDEN, HIDDEN)
        add(f"blk.{n}.attn_k.weight", HIDDEN // 2, HIDDEN)
        add(f"blk.{n}.attn_v.weight", HIDDEN // 2, HIDDEN)
        add(f"blk.{n}.attn_output.weight", HIDDEN, HIDDEN)
        add(f"blk.{n}.ffn_gate.weight", 2 * HIDDEN, HIDDEN)
        add(f"blk.{n}.ffn_up.weight", 2 * HIDDEN, HIDDEN)
        add(f"blk.{n}.ffn_down.weight", HIDDEN, 2 * HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
