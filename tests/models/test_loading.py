"""Models are converted, healed, pruned, quantised and merged without changing what they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill.core.files import write_json
from distill.core.weights import fingerprint
from distill.errors import ModelError
from tests.support.errors import one_line
from tests.support.models.gguf_file import TEXT
from tests.support.tiny import save_tiny_model

torch = pytest.importorskip("torch")


models = pytest.importorskip("distill.models.loading")


pruning = pytest.importorskip("distill.models.pruning")


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21


# Folders and names


@pytest.fixture(scope="module")
def tiny_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny(tiny_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_once, tmp_path / "model"))


@pytest.mark.model
def test_a_folder_is_taken_where_it_lies(tiny: Path) -> None:
    assert models.materialise(str(tiny)) == tiny


@pytest.mark.model
@pytest.mark.parametrize(
    ("lost", "found", "said"),
    [
        ("model.safetensors", "pytorch_model.bin", "pytorch_model.bin, a pickle"),
        ("model.safetensors", "notes.txt", "no *.safetensors"),
        ("config.json", "notes.txt", "no config.json"),
        ("tokenizer", "notes.txt", "no tokenizer"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(tiny: Path, lost: str, found: str, said: str) -> None:
    for file in tiny.glob(f"{lost}*"):
        file.unlink()
    (tiny / found).touch()
    with pytest.raises(ModelError) as error:
        models.materialise(str(tiny))
    assert said in one_line(error)


@pytest.mark.model
def test_a_folder_that_lacks_a_shard_is_one_line(tiny: Path) -> None:
    weights = {"a": "model.safetensors", "b": "model-2-of-2.safetensors"}
    write_json(tiny / "model.safetensors.index.json", {"weight_map": weights})
    with pytest.raises(ModelError) as error:
        models.materialise(str(tiny))
    assert "lacks 1 of 2 weight files (model-2-of-2.safetensors)" in one_line(error)


@pytest.mark.model
@pytest.mark.parametrize("size", [0, 5, 5000])
def test_damaged_weights_are_one_line(tiny: Path, size: int) -> None:
    os.truncate(tiny / "model.safetensors", size)
    with pytest.raises(ModelError) as error:
        models.load_causal(tiny)
    assert f"the model in {tiny} cannot be read" in one_line(error)


@pytest.mark.model
def test_a_model_in_four_bits_that_lacks_weights_is_one_line(tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file({name: weight.clone() for name, weight in weights.items()}, tiny / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as error:
        models.load_causal(tiny, quantise=True)
    assert "lacks one of the weights that its configuration needs (model.layers.1.mlp.up_proj" in one_line(error)


@pytest.mark.model
def test_a_damaged_tokenizer_is_one_line(tiny: Path) -> None:
    os.truncate(tiny / "tokenizer.json", 5000)
    with pytest.raises(ModelError) as error:
        models.load_tokenizer(tiny)
    assert f"the tokenizer in {tiny} cannot be read" in one_line(error)


@pytest.mark.parametrize("model", ["./nowhere", "nowhere.gguf", "", "two words"])
def test_a_path_that_is_not_there_is_one_line(model: str) -> None:
    with pytest.raises(ModelError) as error:
        models.materialise(model)
    assert "no model at" in one_line(error)


def test_a_hub_name_without_a_hub_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ModelError) as error:
        models.materialise("nobody-at-all/nothing")
    assert "needs no Hub" in one_line(error)


@pytest.fixture(scope="module")
def ids(tiny_once: Path) -> Any:
    return models.load_tokenizer(tiny_once)(TEXT, return_tensors="pt").input_ids


# Four bits


def codes(model: Any) -> dict[str, Any]:
    return {name: weight for name, weight in model.named_parameters() if weight.dtype == torch.uint8}


@pytest.mark.model
def test_four_bit_codes_do_not_depend_on_the_compute_dtype(tiny_once: Path) -> None:
    exact, coarse = (models.load_causal(tiny_once, quantise=True, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert len(codes(exact)) == 4 * 7
    assert all(torch.equal(weight, codes(coarse)[name]) for name, weight in codes(exact).items())
    assert {w.dtype for n, w in coarse.named_parameters() if n not in codes(coarse)} == {torch.bfloat16}
    assert coarse.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.model
def test_gradients_in_four_bits_are_right_after_an_evaluation(tiny_once: Path, ids: Any) -> None:
    quantised, plain = (models.load_causal(tiny_once, layers=(0, 1, 3), quantise=True) for _ in range(2))
    with torch.no_grad():
        quantised(ids)  # an evaluation, after which bitsandbytes 0.50.2 may go on without autograd
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in quantised.modules())
    quantised, plain = with_adapter(quantised), with_adapter(plain.dequantize())
    gradients = []
    for model in (quantised, plain):
        model.train()
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: w.grad for name, w in model.named_parameters() if w.requires_grad})
    assert len(gradients[0]) == 3 * 7 * 2
    for name, gradient in gradients[0].items():
        cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), gradients[1][name].flatten(), dim=0)
        assert cosine > 0.999, name


# Students


def with_adapter(model: Any) -> Any:
    """The model with a LoRA that is far from doing nothing."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture
def trained(tiny: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A student folder, and the 4-bit model with adapter that it was saved from."""
    model = with_adapter(models.load_causal(tiny, layers=(0, 2, 3), quantise=True))
    folder = tmp_path / "student"
    model.save_pretrained(folder)
    models.load_tokenizer(tiny).save_pretrained(folder)
    told = {"model": str(tiny), "fingerprint": fingerprint(str(tiny)), "layers": [0, 2, 3]}
    write_json(folder / "base.json", {**told, "template": "chatml", "quantised": True})
    return folder, model.eval()


@pytest.mark.model
@pytest.mark.parametrize(
    "changes",
    [{"layers": "all"}, {"layers": ["all"]}, {"layers": 3}, {"model": 5}, {"template": []}, {"quantised": ""}],
)
def test_a_base_json_with_other_values_is_one_line(tiny: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    base = {"model": str(tiny), "fingerprint": fingerprint(str(tiny)), "layers": None, "template": "chatml"}
    write_json(tmp_path / "base.json", {**base, "quantised": False, **changes})
    with pytest.raises(ModelError) as error:
        models.load_student(tmp_path, adapter=False)
    one_line(error)


def divergence(true: Any, other: Any, ids: Any) -> float:
    """KL in nats per token."""
    with torch.no_grad():
        p, q = (model(input_ids=ids).logits.log_softmax(-1) for model in (true, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.model
def test_a_merged_student_is_the_one_that_was_trained(trained: tuple[Path, Any], ids: Any) -> None:
    folder, model = trained
    student, _ = models.load_student(folder, adapter=True)
    assert divergence(model, student, ids) < 1e-5
    assert not any("lora" in name for name, _ in student.named_modules())


@pytest.mark.model
def test_the_untrained_base_is_dequantised_pruned_and_another_model(trained: tuple[Path, Any], ids: Any) -> None:
    folder, model = trained
    base, _ = models.load_student(folder, adapter=False)
    with model.disable_adapter():
        assert divergence(model, base, ids) < 1e-5
    assert divergence(model, base, ids) > 0.01


@pytest.mark.model
def test_a_student_can_be_saved_as_a_plain_model(trained: tuple[Path, Any], ids: Any, tmp_path: Path) -> None:
    student, _ = models.load_student(trained[0], adapter=True)
    student.save_pretrained(tmp_path / "merged")
    assert divergence(student, models.load_causal(tmp_path / "merged"), ids) < 1e-9


@pytest.mark.model
def test_a_student_refuses_another_base(trained: tuple[Path, Any], tiny: Path) -> None:
    save_tiny_model(tiny, seed=5)
    with pytest.raises(ModelError) as error:
        models.load_student(trained[0], adapter=False)
    assert "was trained on another" in one_line(error)
