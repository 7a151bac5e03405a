"""Weights and adapters that are missing, misfit or pickles are refused in one line."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill.errors import ModelError
from distill.models import pretrained
from tests.support.errors import one_line
from tests.support.models.model_folders import change

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of a model's folder as is looked at before anything is loaded."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).write_text("{}")
    change(model / "config.json", model_type="llama", num_hidden_layers=2)
    (tmp_path / "outside.safetensors").write_text("{}")
    (tmp_path / "outside.txt").write_text("private")
    return model


@pytest.fixture
def model(tiny: str, tmp_path: Path) -> Path:
    """A whole model's folder of this test's own."""
    return Path(shutil.copytree(tiny, tmp_path / "whole"))


def without(file: Path, *ends: str) -> None:
    """Take the weights with these ends of names out of a file of safetensors."""
    from safetensors.torch import load_file, save_file

    found = load_file(file)
    kept = {name: tensor.clone() for name, tensor in found.items() if not name.endswith(ends)}
    assert len(kept) < len(found)
    save_file(kept, file, metadata={"format": "pt"})


def load(folder: Path) -> Any:
    return pretrained.load_model(folder, "AutoModelForCausalLM")


@pytest.mark.model
@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.weight", "norm.weight", "embed_tokens.weight"])
def test_a_model_that_lacks_weights_is_one_line(model, name):
    without(model / "model.safetensors", name)
    with pytest.raises(ModelError) as error:
        load(model)
    assert f"{model} lacks" in one_line(error)
    assert name in str(error.value)


@pytest.mark.model
def test_a_head_may_be_missing_only_where_it_is_tied(model):
    assert load(model).config.tie_word_embeddings
    change(model / "config.json", tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"lacks one of the weights .* \(lm_head\.weight\)"):
        load(model)


@pytest.mark.model
@pytest.mark.parametrize("settings", [{"hidden_size": 128}, {"num_hidden_layers": 5}, {"vocab_size": 10**9}])
def test_weights_that_do_not_fit_their_configuration_are_one_line(model, settings):
    change(model / "config.json", **settings)
    with pytest.raises(ModelError) as error:
        load(model)
    assert str(model) in one_line(error)


@pytest.mark.model
@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_size": 10**7},
        {"head_dim": 10**6},
        {"hidden_size": 10**9},
        {"num_key_value_heads": 10**6},
        {"intermediate_size": -1},
        {"model_type": "gpt2", "n_positions": 10**8},
        {"model_type": "mixtral", "num_local_experts": 10**6},
    ],
)
def test_a_configuration_of_more_weights_than_the_files_hold_allocates_nothing(model, settings):
    change(model / "config.json", **settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as error:
        load(model)
    one_line(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.model
def test_a_pickle_beside_safetensors_is_not_opened(model):
    (model / "pytorch_model.bin").write_bytes(b"\x80no pickle")
    assert load(model).config.num_hidden_layers == 4
    (model / "model.safetensors").rename(model / "other.safetensors")
    with pytest.raises(ModelError):
        load(model)


@pytest.mark.model
def test_a_whole_model_with_an_adapter_beside_it_is_refused(model):
    change(model / "adapter_config.json", peft_type="LORA", base_model_name_or_path="../other")
    with pytest.raises(ModelError, match="holds an adapter beside a whole model"):
        load(model)


def embedder(folder: Path, tokenizer: Path, *, pooler: bool) -> Path:
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=49152, **shape), add_pooling_layer=pooler).save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.model
def test_a_model_of_sentence_vectors_may_lack_the_pooler_alone(tiny, tmp_path):
    from distill.models.embeddings import embedded

    folder = embedder(tmp_path / "vectors", Path(tiny), pooler=False)
    assert embedded(["one", "two"], folder, 16, key="model").shape == (2, 16)
    without(folder / "model.safetensors", "layer.1.output.dense.weight")
    with pytest.raises(ModelError, match=r"model: .* lacks one of the weights"):
        embedded(["one"], folder, 16, key="model")


@pytest.fixture
def adapter(tiny: str, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    options = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load(Path(tiny)), options).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.model
def test_an_adapter_that_lacks_weights_is_one_line(adapter, tiny):
    pretrained.load_adapter(load(Path(tiny)), adapter)
    without(adapter / "adapter_model.safetensors", "layers.1.self_attn.q_proj.lora_B.weight")
    with pytest.raises(ModelError) as error:
        pretrained.load_adapter(load(Path(tiny)), adapter)
    assert "missing adapter keys" in one_line(error)


@pytest.mark.model
@pytest.mark.parametrize("kind", ["XLORA", "MULTITASK_PROMPT_TUNING", "own.Adapter", None, {}])
def test_an_adapter_of_another_kind_is_refused(adapter, tiny, kind):
    change(adapter / "adapter_config.json", peft_type=kind)
    with pytest.raises(ModelError, match="expected 'LORA'"):
        pretrained.load_adapter(None, adapter)


@pytest.mark.model
def test_an_adapter_in_a_pickle_is_refused(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        pretrained.load_adapter(None, adapter)


@pytest.mark.model
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "(.*)*x"},
        {"target_modules": ["q_proj", "(.*)*x"], "layers_to_transform": [0]},
        {"exclude_modules": "(a|a)*$"},
        {"layers_pattern": "(.*)*x", "layers_to_transform": [0]},
        {"rank_pattern": {"(.*)*x": 8}},
        {"alpha_pattern": {"(.*)*x": 8}},
        {"r": 10**9},
        {"r": 0},
        {"rank_pattern": {"q_proj": 10**9}},
        {"megatron_config": {"a": None}, "megatron_core": "this"},
    ],
)
def test_an_adapter_that_imports_matches_patterns_or_allocates_without_end_is_refused(adapter, settings):
    change(adapter / "adapter_config.json", **settings)
    with pytest.raises(ModelError) as error:
        pretrained.load_adapter(None, adapter)
    assert "adapter_config.json" in one_line(error)
