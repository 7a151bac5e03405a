"""The memory formula of training: each term against the tensors it stands for, the sum against a real process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distill.train.memory import HEAP, Pass, Shape, estimate, shape_in
from distill.train.options import TrainOptions
from tests.support.training import LLAMA_3_8B, LLAMA_3_8B_CONFIG

SMALL = Shape(192, 1024, 8, 49152, heads=3, kv_heads=1, head_width=64)
GB = 1e9
TOKENS, LENGTH = 1536, 128


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    pytest.importorskip("torch")
    from tests.benchmarks.train_memory import write_model

    folder = tmp_path_factory.mktemp("small") / "model"
    write_model(folder, SMALL)
    return folder


def examples(count: int):
    """Sessions of `LENGTH` tokens, the first third a prompt."""
    from distill.models.chat_template import IGNORED, Example

    ids = [list(range(100 + one, 100 + one + LENGTH)) for one in range(count)]
    return [Example(one, [IGNORED] * (LENGTH // 3) + one[LENGTH // 3 :]) for one in ids]


@pytest.fixture(scope="module")
def trainer(small):
    from collections import Counter

    from distill.models import loading, third_party
    from distill.train import build
    from distill.train.dataset import Examples

    found = Examples([str(one) for one in range(12)], examples(12), Counter())
    options = TrainOptions(micro_batch_tokens=TOKENS, batch_tokens=TOKENS, epochs=1)
    with third_party.quiet():
        trainer = build.build(
            small, None, loading.load_tokenizer(small), found, options=options, seed=0, output=small / "no", say=print
        )

    return trainer


@pytest.mark.model
def test_the_weights_are_those_of_the_formula(trainer):
    learning, base = 0, 0
    for parameter in trainer.model.parameters():
        learning += parameter.numel() if parameter.requires_grad else 0
        base += 0 if parameter.requires_grad else parameter.untyped_storage().nbytes()
        state = getattr(parameter, "quant_state", None)
        scales = (state.absmax, state.state2.absmax) if state is not None else ()
        base += sum(scale.untyped_storage().nbytes() for scale in scales)
    expected = estimate(SMALL, TrainOptions(), Pass(TOKENS))
    assert learning == SMALL.lora_weights(16) == expected.learning / 16
    assert expected.base == pytest.approx(base, rel=1e-3)


@pytest.mark.model
def test_what_is_kept_for_the_backward_pass_is_what_the_formula_says(trainer):
    import torch

    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.compute_loss(trainer.model.train(), trainer.batch(tuple(range(12))), num_items_in_batch=1)
    found = sum(size for size, _ in kept.values())
    after_the_layers = 4 * SMALL.hidden * (TOKENS + 12 * (LENGTH - LENGTH // 3))  # the last norm's input, the gradient
    expected = estimate(SMALL, TrainOptions(), Pass(TOKENS)).activations / HEAP["cpu"] + after_the_layers
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.model
def test_a_process_takes_what_the_formula_says(small):
    """Within a fifth: the libraries' share and the heap's fragmentation vary."""
    from distill.train.dry_run import measured_pass

    options = TrainOptions(micro_batch_tokens=TOKENS)
    measured = measured_pass(small, None, examples(12), options, 0)
    expected = estimate(SMALL, options, Pass(TOKENS, trained_share=2 / 3))
    assert expected.total == pytest.approx(measured.peak_bytes, rel=0.2)


def test_a_shape_is_read_from_a_models_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B_CONFIG))
    assert shape_in(tmp_path) == LLAMA_3_8B
    assert shape_in(tmp_path, layers=16) == replace(LLAMA_3_8B, layers=16)
    assert shape_in(tmp_path / "nowhere") is None


QWEN3_30B_A3B = {
    **LLAMA_3_8B_CONFIG, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "num_hidden_layers": 48, "vocab_size": 151936,
}  # fmt: skip
GPT2 = {"n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257}


@pytest.mark.parametrize(
    ("config", "weights"),
    [(QWEN3_30B_A3B, 30.5e9), ({"text_config": LLAMA_3_8B_CONFIG, "hidden_size": None}, 8.03e9), (GPT2, 0.124e9)],
    ids=["experts", "a text part", "other names"],
)
def test_a_shape_has_the_weights_of_its_family(config, weights):
    shape = Shape.of(config)
    assert shape.linear_weights() + shape.expert_weights() + shape.other_weights() == pytest.approx(weights, rel=0.01)


def test_experts_stay_in_16_bits_under_qlora():
    shape = Shape.of(QWEN3_30B_A3B)
    assert estimate(shape, TrainOptions(), Pass(4096, device="cuda", width=2)).base > 2 * shape.expert_weights()


def test_llama_3_8b_has_the_weights_that_are_published():
    assert LLAMA_3_8B.linear_weights() + LLAMA_3_8B.other_weights() == 8_030_261_248
    assert LLAMA_3_8B.lora_weights(64) == 167_772_160


def test_eight_billion_weights_are_trained_in_4_bits_within_24_gb_without_computing_again():
    options = TrainOptions.model_validate({"lora": {"r": 64}})
    assert estimate(LLAMA_3_8B, options, Pass(4096, device="cuda", width=2)).total < 24 * GB
