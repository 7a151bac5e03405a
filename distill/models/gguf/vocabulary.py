"""A byte-level BPE tokenizer in GGUF's form: tokens, types, merges, pre-tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import ModelError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens, in llama.cpp's numbering (`llama_token_type`)."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

_SPLITS: Mapping[str, tuple[tuple[str, Any], ...]] = {
    "gpt-2": (("ByteLevel", True),),
    "smollm": (("Digits", True), ("ByteLevel", True)),
    "llama-bpe": (("Split", _LLAMA3), ("ByteLevel", False)),
    "qwen2": (("Split", _QWEN2), ("ByteLevel", False)),
}
"""Pre-tokenizer steps by llama.cpp's name (`tokenizer.ggml.pre`): for `Digits`, whether each is split off; for `Split`,
the regular expression; for `ByteLevel`, whether it splits by GPT-2's expression."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer in a GGUF file."""

    pre: str
    tokens: tuple[str, ...]
    """By id."""
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    """Pairs separated by a space, in order of rank."""


def read_vocabulary(tokenizer: Any, *, rows: int) -> Vocabulary:
    """The vocabulary of a Hugging Face tokenizer for an embedding of `rows` rows; ids without a token get a filler.

    Raises `ModelError` for a tokenizer that is no byte-level BPE, or whose pre-tokenizer has no name in llama.cpp.
    """
    info = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _pre(info)
    names: dict[int, str] = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    count = max(rows, max(names) + 1)
    if count > rows:
        raise ModelError(f"the tokenizer has {count:,} tokens and the model {rows:,}; the two do not belong together")
    kinds = [_kind(id_, names, added) for id_ in range(count)]
    tokens = [names.get(id_, f"[PAD{id_}]") for id_ in range(count)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in info["model"]["merges"]]
    return Vocabulary(pre, tuple(tokens), tuple(kinds), tuple(merges))


def _kind(id_: int, names: Mapping[int, str], added: Mapping[int, Any]) -> int:
    if id_ not in names:
        return UNUSED
    if id_ not in added:
        return NORMAL
    return CONTROL if added[id_].special else USER_DEFINED


def _pre(info: Mapping[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises `ModelError` where it has none."""
    if info["model"].get("type") != "BPE" or info["model"].get("byte_fallback"):
        raise ModelError(
            f"no GGUF can be written with a tokenizer of type {info['model'].get('type')}, only with byte-level BPE;"
            " use --to merged"
        )
    split_steps = _steps(info.get("pre_tokenizer"))
    for name, steps in _SPLITS.items():
        if split_steps == steps:
            return name
    raise ModelError(
        f"no GGUF can be written: the tokenizer splits text in a way that has no name here ({', '.join(_SPLITS)}); use"
        " --to merged"
    )


def _steps(info: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    """The pre-tokenizer's steps with their settings, in the form of `_SPLITS`; unusual settings match none of those."""
    if info is None:
        return ()
    kind = info["type"]
    if kind == "Sequence":
        return tuple(step for part in info["pretokenizers"] for step in _steps(part))
    if kind == "Digits":
        return ((kind, info["individual_digits"]),)
    if kind == "ByteLevel" and not info["add_prefix_space"]:
        return ((kind, info["use_regex"]),)
    if kind == "Split" and info["behavior"] == "Isolated" and not info["invert"]:
        return ((kind, info["pattern"].get("Regex")),)
    return ((kind, "of its own"),)
