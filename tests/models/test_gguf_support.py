"""Before a training, a model's files say whether it will have a GGUF form."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPACES = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
LETTERS = {"a": 0, "b": 1, "ab": 2}
BPE: dict[str, Any] = {"type": "BPE", "vocab": LETTERS, "merges": ["a b"]}
PYTHIA = {"pre_tokenizer": BYTES, "model": BPE}
MISTRAL = {"pre_tokenizer": SPACES, "model": {**BPE, "byte_fallback": True}}
APART = {"pre_tokenizer": SPACES, "model": {**BPE, "byte_fallback": True, "merges": []}}
CASES: list[tuple[str, dict[str, Any] | None, dict[str, Any], str | None]] = [
    ("MistralForCausalLM", MISTRAL, {}, None),
    ("GPTNeoXForCausalLM", PYTHIA, {}, None),
    ("GemmaForCausalLM", MISTRAL, {}, "of a GemmaForCausalLM; there is LlamaForCausalLM"),
    ("LlamaForCausalLM", PYTHIA, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, 'rotary scaling "yarn"'),
    ("LlamaForCausalLM", APART, {}, "would join 1 pairs of pieces"),
    ("LlamaForCausalLM", {**MISTRAL, "normalizer": {"type": "Lowercase"}}, {}, "writes spaces otherwise"),
    ("LlamaForCausalLM", {**PYTHIA, "pre_tokenizer": {"type": "Whitespace"}}, {}, "splits text in a way"),
    ("LlamaForCausalLM", {"model": {"type": "Unigram"}}, {}, "of type Unigram"),
    ("LlamaForCausalLM", None, {}, "no tokenizer.json"),
]


@pytest.mark.parametrize(("name", "tokenizer", "more", "reason"), CASES)
def test_a_folder_says_why_it_has_no_gguf(tmp_path, name, tokenizer, more, reason):
    from distill.models.gguf.support import obstacle

    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], **more}))
    if tokenizer is not None:
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = obstacle(tmp_path)
    assert (found is None) == (reason is None)
    assert found is None or str(reason) in found


@pytest.mark.parametrize(
    ("tokenizer", "method", "template", "line"),
    [
        (MISTRAL, "qlora", "chatml", "exports: adapter, merged, gguf, ollama"),
        (
            MISTRAL,
            "full",
            "own",
            "exports: merged, gguf, ollama (if its own template puts fixed texts around messages)",
        ),
        (APART, "lora", "chatml", "exports: adapter, merged; no GGUF can be written: llama.cpp would join 1 pairs"),
        (
            None,
            "lora",
            "chatml",
            "exports: adapter, merged; gguf and ollama depend on the student's model, which is no folder",
        ),
    ],
)
def test_check_names_the_exports_before_any_training(tmp_path, tokenizer, method, template, line):
    from distill.pipeline.student_forecast import exports
    from distill.recipe import Student

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["MistralForCausalLM"]}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if tokenizer is None:
        shutil.rmtree(folder)
    assert exports(Student(model=str(folder), template=template), method).startswith(line)
