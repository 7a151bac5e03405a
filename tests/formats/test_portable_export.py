"""The fields of an exported folder that transformers 4.57 reads, and what is told of a base that loses tensors."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from distill.errors import RunFolderError

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

THETA = {"rope_type": "default", "rope_theta": 5e5}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FACTORS = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 2}
OLDER: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a base": ("llama", {"rope_parameters": THETA}, {"rope_theta": 5e5, "rope_scaling": None}),
    "scaling": (
        "llama",
        {"rope_parameters": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": {key: LLAMA3[key] for key in LLAMA3 if key != "rope_theta"}},
    ),
    "names of its own": (
        "gpt_neox",
        {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}},
        {"rotary_emb_base": 5e5, "rotary_pct": 0.5, "rope_scaling": None},
    ),
    "a part of each head": (
        "stablelm",
        {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}},
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
    ),
    "two kinds of layers": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": THETA, "sliding_attention": {**THETA, "rope_theta": 1e3}}},
        {"rope_theta": 5e5, "rope_local_base_freq": 1e3, "rope_scaling": None},
    ),
    "three fields and no more": (
        "phi3",
        {
            "rope_parameters": {**THETA, "rope_type": "longrope", **FACTORS},
            "original_max_position_embeddings": 128,
            "max_position_embeddings": 512,
        },
        {"rope_theta": 5e5, "rope_scaling": {"type": "longrope", **FACTORS}},
    ),
    "experts": ("qwen3_moe", {"num_experts": 4}, {"num_experts": 4}),
}
"""Fields of config.json that the configurations of transformers 4.57.6 read (`models/*/configuration_*.py`)."""


def written(folder: Any, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """config.json of a model of a family, as an export writes it."""
    from distill.formats.exporters.student.portable import rewrite_config

    config = transformers.AutoConfig.for_model(kind, **SIZES, **json.loads(json.dumps(settings)))
    config.save_pretrained(folder)
    assert rewrite_config(folder / "config.json", "float16")
    again = transformers.AutoConfig.from_pretrained(folder)
    assert {**again.rope_parameters, "type": None} == {**config.rope_parameters, "type": None}
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("case", OLDER)
def test_the_settings_of_a_model_are_there_in_both_forms(tmp_path, case):
    kind, settings, older = OLDER[case]
    found = written(tmp_path, kind, settings)
    assert {key: found.get(key, "missing") for key in older} == older
    assert "rope_parameters" in found
    assert (found["dtype"], found["torch_dtype"]) == ("float16", "float16")


def test_settings_that_have_no_older_form_are_told(tmp_path):
    from distill.formats.exporters.student.portable import rewrite_config

    two = {"full_attention": THETA, "sliding_attention": {**THETA, "rope_theta": 1e3}}
    transformers.AutoConfig.for_model("olmo3", **SIZES, rope_parameters=two).save_pretrained(tmp_path)
    assert not rewrite_config(tmp_path / "config.json", "float16")
    assert "rope_theta" not in json.loads((tmp_path / "config.json").read_text())


def test_the_tokenizer_has_a_class_and_special_tokens_that_transformers_4_knows(tmp_path):
    from distill.formats.exporters.student.portable import rewrite_tokenizer_config
    from tests.models.test_gguf_writing import tokenizer

    words = tokenizer()
    words.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    words.save_pretrained(tmp_path)
    rewrite_tokenizer_config(tmp_path / "tokenizer_config.json", words)
    found = json.loads((tmp_path / "tokenizer_config.json").read_text())
    # 4.57.6: tokenization_auto.py knows no TokenizersBackend, tokenization_utils_base.py:1472 wants a dict there
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "<|turn|>" in found["additional_special_tokens"]
    assert isinstance(found.get("extra_special_tokens", {}), dict)
    assert found["model_input_names"] == ["input_ids", "attention_mask"]  # else `generate(**prompt)` fails there
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "In 2024<|turn|> the king<|im_end|>"
    assert again.encode(text) == words.encode(text)
    assert again.all_special_tokens == words.all_special_tokens


# What is lost


def saved(folder: Any, shapes: dict[str, tuple[int, ...]], **settings: Any) -> Any:
    from safetensors.numpy import save_file

    folder.mkdir()
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


TEXT = {
    "model.embed_tokens.weight": (9, 4),
    "model.layers.0.mlp.up_proj.weight": (8, 4),
    "model.layers.1.mlp.up_proj.weight": (8, 4),
}


@pytest.mark.parametrize(
    ("more", "remark"),
    [
        ({}, None),
        ({"lm_head.weight": (9, 4), "model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}, None),
        (
            {"vision_tower.blocks.0.qkv.weight": (1000, 1000)},
            r"vision_tower\.blocks \(1\.0 million weights, tensors: 1\)",
        ),
        (
            {"mtp.layers.0.fc.weight": (5, 5), "model.layers.2.eh_proj.weight": (5, 5)},
            r"model\.layers, mtp\.layers .*tensors: 2",
        ),
    ],
)
def test_tensors_of_the_base_without_a_place_are_told(tmp_path, more, remark):
    from distill.formats.exporters.student.tensors import left_out, tensor_names

    base = saved(tmp_path / "base", {**TEXT, **more}, tie_word_embeddings=True)
    written = tensor_names(saved(tmp_path / "out", {name: TEXT[name] for name in list(TEXT)[:2]}))
    found = left_out(base, written)
    assert len(found) == (remark is not None)
    assert all(re.search(remark, line) for line in found)


def test_the_space_is_checked_before_any_work(tmp_path):
    from distill.formats.exporters.student.tensors import require_space, weights_in

    base = saved(tmp_path / "base", TEXT)
    assert weights_in(base, None) == 9 * 4 + 2 * 8 * 4
    assert weights_in(base, [0]) == 9 * 4 + 8 * 4
    require_space(tmp_path / "x", 1)
    with pytest.raises(RunFolderError, match=r"needs about 1,000,000,000\.0 GB, and \S+ GB are free there"):
        require_space(tmp_path / "x", 1e18)
