"""GGUF files: converted once, with the same weights and tokens, and healed."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.core.files import read_json
from distill.errors import ModelError
from tests.support.errors import one_line
from tests.support.models.gguf_file import TEXT, make_gguf

torch = pytest.importorskip("torch")


models = pytest.importorskip("distill.models.loading")


pruning = pytest.importorskip("distill.models.pruning")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT 0.21
]


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


# Conversion


def test_a_conversion_is_used_again(converted: Path, gguf_file: Path) -> None:
    lines: list[str] = []
    assert models.materialise(str(gguf_file), say=lines.append) == converted
    assert lines == []


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
    lines: list[str] = []
    models.materialise(str(gguf_file), say=lines.append)
    assert weights.read_bytes() == whole
    assert "damaged" in lines[0]


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
    lines: list[str] = []
    models.materialise(str(gguf_file), say=lines.append)
    assert lines == []


@pytest.mark.parametrize("damage", ["truncated", "header", "magic", "empty", "cut string", "long string"])
def test_a_damaged_gguf_is_one_line(gguf_file: Path, tmp_path: Path, monkeypatch: Any, damage: str) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    whole = gguf_file.read_bytes()
    key = whole.index(b"tokenizer.ggml.model") + len(b"tokenizer.ggml.model") + 4  # the length of its value
    broken = {
        "truncated": whole[:-2000],
        "header": whole[:300],
        "magic": b"GGML" + whole[4:],
        "empty": b"",
        "cut string": whole[: key + 3],
        "long string": whole[:key] + b"\xff" * 8 + whole[key + 8 :],
    }
    (tmp_path / "broken.gguf").write_bytes(broken[damage])
    with pytest.raises(ModelError) as error:
        models.materialise(str(tmp_path / "broken.gguf"))
    assert "broken.gguf cannot be read as GGUF" in one_line(error)
    assert [f.name for f in (tmp_path / "cache" / "models").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 10**6),
        ("embedding_length", 2**32 - 1),
        ("feed_forward_length", 10**9),
        ("vocab_size", 10**9),
        ("attention.head_count", 0),
    ],
)
def test_a_gguf_that_declares_absurd_sizes_is_one_line(gguf_file: Path, tmp_path: Path, key: str, value: int) -> None:
    whole = gguf_file.read_bytes()
    start = whole.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    (tmp_path / "lying.gguf").write_bytes(whole[:start] + value.to_bytes(4, "little") + whole[start + 4 :])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as error:
        models.read_gguf(tmp_path / "lying.gguf")
    assert "lying.gguf" in one_line(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


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
