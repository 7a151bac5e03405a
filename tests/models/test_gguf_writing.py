"""A GGUF file holds what was written: transformers and llama.cpp read the same weights, tokens and template."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from distill.errors import ModelError
from distill.models.chat_template import jinja
from distill.models.gguf.rope import llama3_factors
from distill.models.templates.check import examples
from tests.support import families, llama_cpp

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ("In 2024 the price rose 17 %.", "\n\n1.  two  spaces\tand 'tis I'll", "Ünï 日本 🙂", "a<|im_end|>b")
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SPLITS = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def tokenizer(pre: str = "smollm", *, bos: bool = False) -> Any:
    """A byte-level BPE of 600 tokens that splits text as the models do whose rule llama.cpp calls `pre`."""
    steps = SPLITS[pre]
    if isinstance(steps, str):
        steps = [
            pre_tokenizers.Split(Regex(steps), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [
        "In 2024 the price rose 17 per cent, and it's 2024 again: the king said 1, 2, 3. user assistant system"
    ] * 9
    made.train_from_iterator(words, trainer)
    if bos:
        from tokenizers.processors import TemplateProcessing

        made.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    wrapped.chat_template = families.QWEN
    return wrapped


SIZES = {
    "vocab_size": 608,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def model(kind: str = "Llama", **changes: Any) -> Any:
    """A random model whose logits are far apart."""
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**{**SIZES, **changes}))
    made.config.architectures = [type(made).__name__]
    for name, weight in made.named_parameters():
        if weight.dim() == 1:  # norms that are all ones, and biases that are all zeros, would hide their loss
            weight.data += torch.rand_like(weight) / 2
        elif "embed" in name or "head" in name:
            weight.data *= 25
    return made.eval()


KINDS = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama untied, long": ("Llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3_SCALING, "head_dim": 32}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("Qwen3", {"head_dim": 128}),  # transformers reads no other from a GGUF file
    "gpt_neox": (
        "GPTNeoX",
        {
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5},
        },
    ),
}


def pieces(prepend: str, *, without: int = 0) -> Any:
    """A tokenizer whose merges are those that SentencePiece's pieces imply, but for some, with a begin token."""
    from tokenizers.processors import TemplateProcessing
    from transformers.tokenization_utils_base import generate_merges

    made = families.sentencepiece(families.FAMILIES["llama-2"], prepend=prepend)
    info = json.loads(made.backend_tokenizer.to_str())
    vocab, added = info["model"]["vocab"], {token["content"] for token in info["added_tokens"]}
    plain = {piece: id_ for piece, id_ in vocab.items() if piece not in added and not piece.startswith("<0x")}
    merges = generate_merges(plain, {piece: -float(id_) for piece, id_ in plain.items()})
    info["model"]["merges"] = merges[without:]
    words = Tokenizer.from_str(json.dumps(info))
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def written(path: Any, kind: str, words: Any, **options: Any) -> Any:
    from distill.models.gguf.writing import write_gguf

    name, changes = KINDS[kind]
    made = model(name, **changes)
    write_gguf(path, made, words, template="own", name="tiny", **options)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_again_is_what_was_written(tmp_path, kind):
    from distill.models.gguf.reading import read_gguf

    words = tokenizer()
    made = written(tmp_path / "m.gguf", kind, words, dtype="float32")
    found, found_words = read_gguf(tmp_path / "m.gguf")
    ids = torch.arange(40, 90)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, made(ids).logits, rtol=1e-4, atol=1e-3)
    assert found.config.tie_word_embeddings == made.config.tie_word_embeddings
    assert [found_words.encode(text) for text in TEXTS] == [words.encode(text) for text in TEXTS]
    assert found_words.chat_template == words.chat_template


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_goes_on_with_the_same_tokens(tmp_path, kind):
    words = tokenizer()
    made = written(tmp_path / "m.gguf", kind, words, dtype="float32")
    prompts = [words.encode(text) for text in TEXTS]
    found = llama_cpp.ask(tmp_path / "m.gguf", prompts=prompts)["greedy"]
    expected = [
        made.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2)
        for ids in prompts
    ]
    assert found == [ids[0, len(prompt) :].tolist() for ids, prompt in zip(expected, prompts, strict=True)]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("pre", SPLITS)
def test_llama_cpp_splits_text_and_renders_chat_as_the_tokenizer_does(tmp_path, pre, bos):
    words = tokenizer(pre, bos=bos)
    written(tmp_path / "m.gguf", "llama", words)
    texts = [text for text in TEXTS if "<|" not in text]
    chats = [[{"role": m.role, "content": m.content} for m in turns] for turns in examples()]
    found = llama_cpp.ask(tmp_path / "m.gguf", texts=texts, chats=chats)
    assert found["tokens"] == [words.encode(text) for text in texts]
    rendered = [words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    begin = words.bos_token if bos else ""  # which llama.cpp takes off a text, for it puts it before the ids
    assert found["rendered"] == [text.removeprefix(begin) for text in rendered]


@pytest.mark.parametrize("prepend", ["first", "always", "never"])
@pytest.mark.parametrize("template", ["chatml", "vicuna"])
def test_llama_cpp_asks_in_the_trained_pieces(tmp_path, prepend, template):
    """Conversations have the ids of the training, whatever the tokenizer does with the space before a text."""
    from distill.models import chat_template
    from distill.models.gguf.reading import read_gguf
    from distill.models.gguf.writing import write_gguf

    words = pieces(prepend)
    write_gguf(tmp_path / "m.gguf", model("Mistral", vocab_size=len(words), sliding_window=None), words,
               template=template, name="tiny")  # fmt: skip
    chats = [[{"role": m.role, "content": m.content} for m in turns] for turns in examples()]
    rendered = llama_cpp.ask(tmp_path / "m.gguf", chats=chats)["rendered"]
    trained = [chat_template.prompt_ids(turns, template, words) for turns in examples()]
    assert llama_cpp.ask(tmp_path / "m.gguf", texts=rendered)["tokens"] == trained
    again = read_gguf(tmp_path / "m.gguf")[1]
    assert [again.encode(words.bos_token + text, add_special_tokens=False) for text in rendered] == trained


MIXES = [
    ("q8_0", "blk.0.attn_q.weight", (64, 96), ("Q8_0", False)),
    ("q8_0", "blk.0.attn_q.weight", (64, 90), ("F16", True)),
    ("q4_k_m", "blk.0.attn_norm.weight", (256,), ("F32", False)),
    ("q4_k_m", "blk.0.attn_q.weight", (64, 256), ("Q4_K", False)),
    ("q4_k_m", "blk.0.attn_v.weight", (64, 256), ("Q6_K", False)),  # the first eighth of 24 layers
    ("q4_k_m", "blk.3.attn_v.weight", (64, 256), ("Q4_K", False)),
    ("q4_k_m", "blk.5.ffn_down.weight", (64, 256), ("Q6_K", False)),  # each third one after it
    ("q4_k_m", "blk.21.attn_qkv.weight", (64, 256), ("Q6_K", False)),  # the last eighth
    ("q4_k_m", "blk.3.attn_k.weight", (64, 576), ("Q5_0", True)),
    ("q5_k_m", "blk.3.attn_k.weight", (64, 576), ("Q5_1", True)),
    ("q4_k_m", "token_embd.weight", (64, 576), ("Q8_0", True)),  # the output as well
    ("q6_k", "blk.3.ffn_up.weight", (64, 256), ("Q6_K", False)),
]
"""As in llama.cpp's `llama_tensor_get_type_impl`, for a model of 24 layers with tied embeddings."""


@pytest.mark.parametrize(("dtype", "name", "shape", "kind"), MIXES)
def test_tensors_have_the_types_that_llama_cpp_gives_them(dtype, name, shape, kind):
    from distill.models.gguf.quantising import kind_of

    assert kind_of(name, shape, dtype, layers=24, tied=True) == kind


def test_llama_cpp_reads_what_its_own_quantiser_made(tmp_path):
    from distill.models.gguf.quantising import counted
    from distill.models.gguf.reading import read_gguf
    from distill.models.gguf.writing import write_gguf

    llama_cpp.require()
    words, ids = tokenizer(), torch.arange(40, 90)[None]
    costs = {}
    for dtype in ("q8_0", "q6_k", "q4_k_m"):
        made = model(hidden_size=256, tie_word_embeddings=False)
        kinds = write_gguf(tmp_path / "m.gguf", made, words, template="own", name="tiny", dtype=dtype)
        with torch.no_grad():
            ours, theirs = (one(ids).logits.log_softmax(-1) for one in (made, read_gguf(tmp_path / "m.gguf")[0]))
        costs[dtype] = (ours.exp() * (ours - theirs)).sum(-1).mean().item()
        assert len(llama_cpp.ask(tmp_path / "m.gguf", prompts=[[40, 41]])["greedy"][0]) == 8
    assert 0 < costs["q8_0"] < costs["q6_k"] < costs["q4_k_m"] < 0.5
    assert counted(kinds) == ({"Q4_K": 12, "Q5_0": 1, "Q6_K": 2, "Q8_0": 1}, 2)


def test_smaller_numbers_cost_little_and_the_file_shrinks(tmp_path):
    from distill.models.gguf.reading import read_gguf

    sizes, costs = [], []
    ids = torch.arange(40, 90)[None]
    for dtype in ("float32", "float16", "q8_0"):
        made = written(tmp_path / "m.gguf", "llama", tokenizer(), dtype=dtype)
        with torch.no_grad():
            ours, theirs = (one(ids).logits.log_softmax(-1) for one in (made, read_gguf(tmp_path / "m.gguf")[0]))
        costs.append((ours.exp() * (ours - theirs)).sum(-1).mean().item())
        sizes.append((tmp_path / "m.gguf").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert abs(costs[0]) < 1e-6 > abs(costs[1]) - 1e-5
    assert costs[1] < costs[2] < 0.05


def test_rows_of_query_and_key_are_interleaved_by_head():
    from distill.models.gguf.writing import permuted

    rows = torch.arange(8)[:, None]  # two heads of four rows
    assert permuted(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_factors_of_llama_3_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = model(rope_parameters=LLAMA3_SCALING, head_dim=128).config
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500_000.0 ** (torch.arange(0, 128, 2) / 128)
    torch.testing.assert_close(plain / scaled, llama3_factors(config), rtol=1e-5, atol=1e-6)


def test_ids_without_a_token_are_filled(tmp_path):
    from gguf import GGUFReader

    written(tmp_path / "m.gguf", "llama", tokenizer())
    field = GGUFReader(tmp_path / "m.gguf").get_field("tokenizer.ggml.tokens")
    assert len(field.contents()) == SIZES["vocab_size"]
    assert field.contents()[-1] == "[PAD607]"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"kind": "Gemma"}, "no GGUF can be written of a GemmaForCausalLM; there is LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, 'rotary scaling "yarn"'),
    ],
)
def test_a_model_that_has_no_place_is_refused_in_one_line(tmp_path, change, line):
    from distill.models.gguf.writing import write_gguf

    with pytest.raises(ModelError) as raised:
        write_gguf(tmp_path / "m.gguf", model(**change), tokenizer(), template="own", name="tiny")
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "--to merged" in str(raised.value)
    assert not (tmp_path / "m.gguf").exists()


def test_a_tokenizer_that_has_no_place_is_refused_in_one_line(tmp_path):
    from distill.models.gguf.vocabulary import read_vocabulary

    unknown = copy.deepcopy(tokenizer())
    unknown.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match=r"splits text in a way that has no name here.*use --to merged"):
        read_vocabulary(unknown, rows=608)
    with pytest.raises(ModelError, match=r"would join [\d,]+ pairs of pieces that the tokenizer keeps apart"):
        read_vocabulary(pieces("first", without=3), rows=10_000)
    words = Tokenizer(models.Unigram())
    with pytest.raises(ModelError, match="a tokenizer of type Unigram, only with BPE"):
        read_vocabulary(transformers.PreTrainedTokenizerFast(tokenizer_object=words), rows=10)
    with pytest.raises(ModelError, match="the two do not belong together"):
        read_vocabulary(tokenizer(), rows=10)


def test_the_template_in_the_file_is_the_one_that_was_trained(tmp_path):
    from distill.models.gguf.reading import read_gguf
    from distill.models.gguf.writing import write_gguf

    words = tokenizer()
    write_gguf(tmp_path / "m.gguf", model(), words, template="vicuna", name="tiny")
    assert read_gguf(tmp_path / "m.gguf")[1].chat_template == jinja("vicuna", words)
