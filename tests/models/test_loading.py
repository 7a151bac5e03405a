"""Models are converted, healed, pruned, quantised and merged without changing what they are."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.core.files import read_json, write_json
from distill.core.weights import fingerprint
from distill.errors import ModelError
from tests.support.tiny import save_tiny_model

torch = pytest.importorskip("torch")
models = pytest.importorskip("distill.models.loading")
pruning = pytest.importorskip("distill.models.pruning")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21

HIDDEN, LAYERS, VOCABULARY = 32, 2, 96
TEXT = "In 2024, 3 of 10 students said:\n\n1. They don't like  naïve answers 🙂."


# A small GGUF file of our own


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


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "tiny model.gguf")


@pytest.fixture(scope="module")
def converted_once(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the conversion in it."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_CACHE", str(cache))
        models.materialise(str(gguf_file))
    return cache


@pytest.fixture
def converted(gguf_file: Path, converted_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The converted folder, in a cache of this test alone."""
    monkeypatch.setenv("DISTILL_CACHE", str(shutil.copytree(converted_once, tmp_path / "cache")))
    return Path(models.materialise(str(gguf_file)))


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# Conversion


def test_a_conversion_is_used_again(converted: Path, gguf_file: Path) -> None:
    said: list[str] = []
    assert models.materialise(str(gguf_file), say=said.append) == converted
    assert said == []


def test_a_conversion_keeps_the_weights(converted: Path, gguf_file: Path) -> None:
    from gguf import GGUFReader

    weight = models.load_causal(converted).model.layers[1].mlp.up_proj.weight.detach().numpy()
    stored = next(t for t in GGUFReader(gguf_file).tensors if t.name == "blk.1.ffn_up.weight").data
    np.testing.assert_allclose(weight, stored, rtol=2**-11, atol=1e-7)


def test_a_conversion_can_be_saved_and_loaded_by_anyone(converted: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(converted, dtype="auto").save_pretrained(tmp_path / "again")
    assert "quantization_config" not in read_json(converted / "config.json")
    assert read_json(converted / "config.json")["dtype"] == "bfloat16"


def test_digits_are_split_before_spaces_where_the_file_says_so(converted: Path, tmp_path: Path) -> None:
    rules = read_json(converted / "tokenizer.json")["pre_tokenizer"]["pretokenizers"]
    assert [rule["type"] for rule in rules] == ["Digits", "ByteLevel"]
    other = models.materialise(str(make_gguf(tmp_path / "other.gguf", pre="gpt-2")))
    assert read_json(other / "tokenizer.json")["pre_tokenizer"]["type"] == "ByteLevel"


def test_pad_is_parted_from_the_end_token(converted: Path) -> None:
    tokenizer = models.load_tokenizer(converted)
    config = models.load_causal(converted).config
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (0, 2, 128)
    assert (config.pad_token_id, config.eos_token_id) == (0, 2)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "no manifest", "half-written manifest"])
def test_a_damaged_conversion_heals_itself(converted: Path, gguf_file: Path, damage: str) -> None:
    weights, manifest = converted / "model.safetensors", converted / "manifest.json"
    whole = weights.read_bytes()
    if damage == "truncated":
        os.truncate(weights, 1000)
    elif damage == "flipped":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    elif damage == "half-written manifest":
        os.truncate(manifest, 20)
    else:
        (weights if damage == "gone" else manifest).unlink()
    said: list[str] = []
    models.materialise(str(gguf_file), say=said.append)
    assert weights.read_bytes() == whole
    assert "damaged" in said[0]


def test_a_half_finished_conversion_is_swept(converted: Path, gguf_file: Path) -> None:
    left = converted.parent / f".{converted.name}.1.partial"
    left.mkdir()
    shutil.rmtree(converted)
    models.materialise(str(gguf_file))
    assert not left.exists()
    assert sorted(f.name for f in converted.parent.iterdir()) == sorted([converted.name, "lock"])


def test_a_copied_cache_is_taken_as_it_is(converted: Path, gguf_file: Path) -> None:
    for file in converted.iterdir():
        os.utime(file)
    said: list[str] = []
    models.materialise(str(gguf_file), say=said.append)
    assert said == []


@pytest.mark.parametrize("damage", ["truncated", "header", "magic", "empty"])
def test_a_damaged_gguf_is_one_line(gguf_file: Path, tmp_path: Path, monkeypatch: Any, damage: str) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    whole = gguf_file.read_bytes()
    broken = {"truncated": whole[:-2000], "header": whole[:300], "magic": b"GGML" + whole[4:], "empty": b""}
    (tmp_path / "broken.gguf").write_bytes(broken[damage])
    with pytest.raises(ModelError) as error:
        models.materialise(str(tmp_path / "broken.gguf"))
    assert "broken.gguf cannot be read as GGUF" in one_line(error)
    assert [f.name for f in (tmp_path / "cache" / "models").iterdir()] == ["lock"]


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight", "token_embd.weight"])
def test_a_gguf_that_lacks_weights_is_one_line(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError) as error:
        models.materialise(str(make_gguf(tmp_path / "part.gguf", without=name)))
    assert "part.gguf cannot be read as GGUF" in one_line(error)


def test_a_cache_that_cannot_be_written_names_the_setting(gguf_file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError) as error:
        models.materialise(str(gguf_file))
    assert "DISTILL_CACHE" in one_line(error)


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


# Pruning


@pytest.mark.parametrize(("total", "keep"), [(30, 24), (30, 30), (30, 2), (32, 17), (12, 11), (3, 2)])
def test_kept_layers_are_spread_over_the_whole_depth(total: int, keep: int) -> None:
    kept = pruning.kept_layers(total, keep)
    assert len(set(kept)) == keep
    assert list(kept) == sorted(kept)
    assert (kept[0], kept[-1]) == (0, total - 1)
    gaps = [after - before for before, after in pairwise(kept)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("keep", [0, 31])
def test_more_layers_than_there_are_cannot_be_kept(keep: int) -> None:
    with pytest.raises(ModelError) as error:
        pruning.kept_layers(30, keep)
    assert "give 1 to 30" in one_line(error)


@pytest.fixture(scope="module")
def ids(tiny_once: Path) -> Any:
    return models.load_tokenizer(tiny_once)(TEXT, return_tensors="pt").input_ids


@pytest.mark.model
def test_a_pruned_model_is_the_kept_layers_and_no_other(tiny_once: Path, ids: Any) -> None:
    whole, kept = models.load_causal(tiny_once), (0, 2, 3)
    state = whole.model.embed_tokens(ids)
    position = torch.arange(ids.shape[1])[None]
    rotary = whole.model.rotary_emb(state, position)
    for index in kept:
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
        state = whole.model.layers[index](state, attention_mask=mask, position_embeddings=rotary)
    expected = whole.lm_head(whole.model.norm(state))
    torch.testing.assert_close(models.load_causal(tiny_once, layers=kept)(ids).logits, expected)


@pytest.mark.model
def test_a_pruned_model_generates_the_same_with_and_without_its_cache(tiny_once: Path, ids: Any) -> None:
    model = models.load_causal(tiny_once, layers=(1, 3))
    with_cache, without = (
        model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert with_cache.tolist() == without.tolist()


@pytest.mark.model
def test_a_pruned_model_survives_saving(tiny_once: Path, ids: Any, tmp_path: Path) -> None:
    model = models.load_causal(tiny_once, layers=(0, 3))
    model.save_pretrained(tmp_path / "pruned")
    torch.testing.assert_close(models.load_causal(tmp_path / "pruned")(ids).logits, model(ids).logits)


@pytest.mark.model
@pytest.mark.parametrize("layers", [(0, 4), (-1,), ()])
def test_layers_that_are_not_there_cannot_be_kept(tiny_once: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as error:
        models.load_causal(tiny_once, layers=layers)
    assert "the model has 4" in one_line(error)


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


# The embedded model


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return Path(models.materialise("smollm2"))


@pytest.mark.model
def test_the_embedded_model_ends_with_im_end_and_pads_with_another_token(smollm2: Path) -> None:
    tokenizer = models.load_tokenizer(smollm2)
    ends = [tokenizer.convert_ids_to_tokens(n) for n in (tokenizer.bos_token_id, tokenizer.eos_token_id)]
    assert ends == ["<|im_start|>", "<|im_end|>"]
    assert tokenizer.pad_token == "<|endoftext|>"
    assert read_json(smollm2 / "generation_config.json")["eos_token_id"] == tokenizer.eos_token_id


@pytest.mark.model
def test_the_embedded_model_has_its_own_chat_template(smollm2: Path) -> None:
    tokenizer = models.load_tokenizer(smollm2)
    asked = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.model
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello world", ["Hello", "Ġworld"]),
        ("2024", ["2", "0", "2", "4"]),
        ("a\n\n1. b", ["a", "ĊĊ", "1", ".", "Ġb"]),
        ("x  5", ["x", "ĠĠ", "5"]),
        ("don't", ["don", "'t"]),
        ("<|im_end|>", ["<|im_end|>"]),
    ],
)
def test_the_embedded_model_splits_text_as_it_was_trained(smollm2: Path, text: str, tokens: list[str]) -> None:
    assert models.load_tokenizer(smollm2).tokenize(text) == tokens


@pytest.mark.model
def test_the_embedded_models_ids_turn_back_into_the_text(smollm2: Path) -> None:
    tokenizer = models.load_tokenizer(smollm2)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.model
def test_the_embedded_model_answers_and_stops(smollm2: Path) -> None:
    tokenizer, model = models.load_tokenizer(smollm2), models.load_causal(smollm2)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**asked, max_new_tokens=24, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.parametrize(
    ("tokens", "pad"),
    [
        (["<|reserved_special_token_0|>"], "<|reserved_special_token_0|>"),
        (["<|vision_pad|>", "<unused7>"], "<unused7>"),
    ],
)
def test_a_tokenizer_without_a_pad_token_gets_a_reserved_one_and_never_the_end_token(tokens, pad, tmp_path: Path):
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    names = {name: number for number, name in enumerate(["a", "<s>", "</s>", *tokens])}
    bare = PreTrainedTokenizerFast(tokenizer_object=Backend(BPE(names, [])), bos_token="<s>", eos_token="</s>")
    bare.add_tokens([AddedToken(token, special=True) for token in tokens])
    bare.save_pretrained(tmp_path)
    tokenizer = models.load_tokenizer(tmp_path)
    assert (tokenizer.pad_token, tokenizer.eos_token) == (pad, "</s>")
    assert len(tokenizer) == len(names)
