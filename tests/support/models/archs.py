"""Tiny random models of many families, by transformers' own classes, with the embedded model's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

_IDS: dict[str, Any] = {"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_BASE: dict[str, Any] = {
    **_IDS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 256, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
_GPT: dict[str, Any] = {
    **_IDS, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}  # fmt: skip
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
_OPT: dict[str, Any] = {
    **_IDS, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 256, "word_embed_proj_dim": 64, "dropout": 0.0,
}  # fmt: skip
_FALCON: dict[str, Any] = {**_IDS, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
_WINDOW: dict[str, Any] = {"sliding_window": 16}
_SEEN: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_LATENT: dict[str, Any] = {
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
_QWEN_SEEN: dict[str, Any] = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
}  # fmt: skip
_QWEN_IDS: dict[str, Any] = {
    "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8,
}  # fmt: skip

ARCHS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _BASE),
    "mistral": ("Mistral", {**_BASE, **_WINDOW}),
    "qwen2": ("Qwen2", _BASE),
    "qwen3": ("Qwen3", {**_BASE, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", {**_BASE, **_WINDOW, "query_pre_attn_scalar": 16}),
    "gemma3_text": ("Gemma3Text", {**_BASE, **_WINDOW, "query_pre_attn_scalar": 16}),
    "phi": ("Phi", {name: value for name, value in _BASE.items() if name != "head_dim"}),
    "phi3": ("Phi3", {**_BASE, "sliding_window": None}),
    "olmo2": ("Olmo2", _BASE),
    "smollm3": ("SmolLM3", {**_BASE, "no_rope_layers": [1, 1, 0]}),
    "stablelm": ("StableLm", _BASE),
    "starcoder2": ("Starcoder2", {**_BASE, "sliding_window": None}),
    "cohere": ("Cohere", {**_BASE, "logit_scale": 0.0625}),
    "granite": ("Granite", {**_BASE, "logits_scaling": 4.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.1}),
    "gpt_neox": ("GPTNeoX", {**_BASE, "use_parallel_residual": True}),
    "gpt2": ("GPT2", _GPT),
    "gptj": ("GPTJ", {**_GPT, "rotary_dim": 8}),
    "gpt_bigcode": ("GPTBigCode", _GPT),
    "opt": ("OPT", _OPT),
    "falcon": ("Falcon", {**_FALCON, "multi_query": True}),
    "falcon-alibi": ("Falcon", {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "mpt": ("Mpt", {**_IDS, "d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 256, "expansion_ratio": 2}),
    "bloom": ("Bloom", {**_IDS, "hidden_size": 64, "n_layer": 3, "n_head": 4}),
    "modernbert_decoder": ("ModernBertDecoder", {**_BASE, "local_attention": 16, "global_attn_every_n_layers": 3}),
    "gpt_oss": ("GptOss", {**_BASE, **_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral": ("Mixtral", {**_BASE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2Moe", {**_BASE, **_MOE, "num_experts": 4, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("Qwen3Moe", {**_BASE, **_MOE, "num_experts": 4}),
    "olmoe": ("Olmoe", {**_BASE, "num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("GraniteMoe", {**_BASE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("Phimoe", {**_BASE, "num_local_experts": 4}),
    "qwen3_5": ("Qwen3_5Text", {**_BASE, **_LINEAR}),
    "qwen3_next": (
        "Qwen3Next", {**_BASE, **_LINEAR, **_MOE, "num_experts": 4, "shared_expert_intermediate_size": 32}
    ),
    "lfm2": ("Lfm2", {**_BASE, "layer_types": ["conv", "full_attention", "conv"], "block_ff_dim": 128}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **_BASE, **_MAMBA, "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 0,
            "num_experts_per_tok": 0, "shared_intermediate_size": 128,
        },
    ),
    "falcon_h1": ("FalconH1", {**_BASE, **_MAMBA, "mamba_d_ssm": 128, "mamba_d_head": 16}),
    "nemotron_h": (
        "NemotronH",
        {
            **_BASE, "layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 8, "mamba_head_dim": 16,
            "ssm_state_size": 16, "n_groups": 1, "chunk_size": 16,
        },
    ),
    "mamba": ("Mamba", {**_IDS, "hidden_size": 64, "num_hidden_layers": 2}),
    "gemma": ("Gemma", _BASE),
    "gemma4_text": (
        "Gemma4Text",
        {
            **_BASE, **_WINDOW, "global_head_dim": 16, "vocab_size_per_layer_input": 49152, "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 16,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "vaultgemma": ("VaultGemma", {**_BASE, **_WINDOW, "query_pre_attn_scalar": 16}),
    "ministral3": ("Ministral3", _BASE),
    "glm": ("Glm", _BASE),
    "glm4": ("Glm4", _BASE),
    "olmo": ("Olmo", _BASE),
    "olmo3": ("Olmo3", {**_BASE, **_WINDOW}),
    "cohere2": ("Cohere2", {**_BASE, **_WINDOW, "logit_scale": 0.0625}),
    "exaone4": ("Exaone4", {**_BASE, **_WINDOW, "sliding_window_pattern": 3}),
    "nemotron": ("Nemotron", _BASE),
    "persimmon": ("Persimmon", _BASE),
    "ernie4_5": ("Ernie4_5", _BASE),
    "hunyuan": ("HunYuanDenseV1", _BASE),
    "helium": ("Helium", _BASE),
    "arcee": ("Arcee", _BASE),
    "apertus": ("Apertus", _BASE),
    "bitnet": ("BitNet", _BASE),
    "seed_oss": ("SeedOss", {**_BASE, "attention_dropout": 0.0, "residual_dropout": 0.0}),
    "nanochat": ("NanoChat", _BASE),
    "jais2": ("Jais2", _BASE),
    "biogpt": ("BioGpt", {**_BASE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
    "codegen": ("CodeGen", {**_GPT, "rotary_dim": 8}),
    "ctrl": ("CTRL", {**_GPT, "dff": 128}),
    "gpt_neo": (
        "GPTNeo",
        {
            **_IDS, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256,
            "attention_types": [[["global", "local"], 1]], "window_size": 16,
        },
    ),
    "xglm": (
        "XGLM",
        {
            **_IDS, "d_model": 64, "ffn_dim": 128, "num_layers": 3, "attention_heads": 4, "dropout": 0.0,
            "attention_dropout": 0.0, "max_position_embeddings": 256,
        },
    ),
    "opt-350m": ("OPT", {**_OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "minicpm3": ("MiniCPM3", {**_BASE, **_LATENT, "dim_model_base": 32, "scale_emb": 2}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_BASE, **_LATENT, **_MOE, "head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "llama4_text": (
        "Llama4Text",
        {
            **_BASE, "intermediate_size_mlp": 128, "num_local_experts": 2, "num_experts_per_tok": 1,
            "attention_chunk_size": 16,
        },
    ),
    "granitemoehybrid-experts": (
        "GraniteMoeHybrid",
        {
            **_BASE, **_MAMBA, "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 4,
            "num_experts_per_tok": 2, "shared_intermediate_size": 64,
        },
    ),
    "lfm2_moe": (
        "Lfm2Moe",
        {
            **_BASE, **_MOE, "layer_types": ["conv", "full_attention", "conv"], "num_experts": 4,
            "num_dense_layers": 1,
        },
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeText", {**_BASE, **_LINEAR, **_MOE, "num_experts": 4, "shared_expert_intermediate_size": 32}
    ),
    "glm4_moe": (
        "Glm4Moe",
        {
            **_BASE, **_MOE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
            "n_shared_experts": 1,
        },
    ),
    "mamba2": (
        "Mamba2",
        {
            **_IDS, "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "state_size": 16,
            "n_groups": 1, "chunk_size": 16,
        },
    ),
    "jamba": (
        "Jamba",
        {
            **_BASE, "num_experts": 2, "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2,
            "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 8,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemma", {**_BASE, "num_key_value_heads": 1, "lru_width": 64, "attention_window_size": 16}
    ),
    "rwkv": ("Rwkv", {**_IDS, "hidden_size": 64, "num_hidden_layers": 2, "context_length": 256}),
    "gemma3-vl": (
        "Gemma3",
        {
            "text_config": {**_BASE, **_WINDOW, "query_pre_attn_scalar": 16, "model_type": "gemma3_text"},
            "vision_config": {**_SEEN, "model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4,
            "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7,
        },
    ),
    "mistral3-vl": (
        "Mistral3",
        {
            "text_config": {**_BASE, "model_type": "mistral"}, "image_token_index": 5,
            "vision_config": {**_SEEN, "model_type": "pixtral", "head_dim": 16},
        },
    ),
    "qwen3_5-vl": (
        "Qwen3_5",
        {
            "text_config": {**_BASE, **_LINEAR, "model_type": "qwen3_5_text"}, **_QWEN_IDS,
            "vision_config": {**_QWEN_SEEN, "num_position_embeddings": 16},
        },
    ),
    "qwen2_5-vl": (
        "Qwen2_5_VL",
        {
            "text_config": {
                **_BASE, "model_type": "qwen2_5_vl_text",
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            },
            "vision_config": _QWEN_SEEN, **_QWEN_IDS,
        },
    ),
}  # fmt: skip
"""By name, the prefix of the classes, and the configuration."""


def save_arch(name: str, folder: Path, **changes: Any) -> Path:
    """Write a family's model, with changes of its configuration, and the tokenizer to a folder, as a user has it."""
    import torch
    import transformers

    from distill.models import loading

    prefix, settings = ARCHS[name]
    config = getattr(transformers, f"{prefix}Config")(**settings | changes)
    kinds = (f"{prefix.removesuffix('Text')}{ending}" for ending in ("ForCausalLM", "LMHeadModel"))
    if "text_config" in settings:
        kinds = (f"{prefix}ForConditionalGeneration",)
    kind = next(getattr(transformers, one) for one in kinds if hasattr(transformers, one))
    torch.manual_seed(0)
    model = kind(config)
    _enlarge(model)
    model.save_pretrained(folder)
    for file in loading.materialise("smollm2").iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "vocab", "merges")):
            shutil.copy(file, folder / file.name)
    return folder


def _enlarge(model: Any) -> None:
    """Larger matrices than a fresh model's, so that attention and states do something."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.copy_(torch.randn(weight.shape) * 0.5 / weight.shape[-1] ** 0.5)
