"""A tokenizer in GGUF's form: byte-level BPE (tokens, types, merges, pre-tokenizer) or SentencePiece (with scores).

llama.cpp joins the neighbours that make the token of the highest score, wherever those two are in the vocabulary
(src/llama-vocab.cpp, `llm_tokenizer_spm`), and splits no text beforehand. A tokenizer.json that was converted from
SentencePiece lists all those pairs as merges, in the order of the scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens, in llama.cpp's numbering (`llama_token_type`)."""

SENTENCEPIECE = "default"
"""llama.cpp's name of splitting no text."""

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


_SPACES = (
    ((), (("Metaspace", "first"),)),
    ((), (("Metaspace", "always"),)),
    ((), (("Metaspace", "never"),)),
    ((("Prepend", "▁"), ("Replace", " ")), ()),
    ((("Replace", " "),), ()),
    ((("Replace", " "),), (("Split", " "),)),
)
"""The steps of normalizer and pre-tokenizer by which SentencePiece's tokenizers write a space as ▁."""
_FEW = 100
"""One pair in as many may be joined otherwise: the receipt shows whether the run's own conversations have one."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer in a GGUF file."""

    pre: str
    tokens: tuple[str, ...]
    """By id."""
    kinds: tuple[int, ...]
    merges: tuple[str, ...] = ()
    """Of byte-level BPE: pairs separated by a space, in order of rank."""
    scores: tuple[float, ...] = ()
    """Of SentencePiece, by id."""
    space_prefix: bool = False
    """Of SentencePiece: whether a space is added before a text and behind a special token."""

    @property
    def model(self) -> str:
        """llama.cpp's name of the algorithm."""
        return "llama" if self.scores else "gpt2"


def read_vocabulary(tokenizer: Any, *, rows: int) -> Vocabulary:
    """The vocabulary of a Hugging Face tokenizer for an embedding of `rows` rows; ids without a token get a filler.

    Raises `ModelError` for a tokenizer that llama.cpp would not follow.
    """
    info = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = pre_of(info)
    names: dict[int, str] = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    count = max(rows, max(names) + 1)
    if count > rows:
        raise ModelError(f"the tokenizer has {count:,} tokens and the model {rows:,}; the two do not belong together")
    is_pieces = pre == SENTENCEPIECE
    kinds = tuple(_kind(id_, names, added, tokenizer.unk_token if is_pieces else None) for id_ in range(count))
    tokens = tuple(names.get(id_, f"[PAD{id_}]") for id_ in range(count))
    merges = _merges(info)
    if not is_pieces:
        return Vocabulary(pre, tokens, kinds, merges=tuple(map(" ".join, merges)))
    ranks = _ranks(merges)
    scores = tuple(float(-ranks.get(token, len(ranks))) for token in tokens)
    return Vocabulary(pre, tokens, kinds, scores=scores, space_prefix=_adds_space(tokenizer))


def _kind(id_: int, names: Mapping[int, str], added: Mapping[int, Any], unknown: str | None) -> int:
    """The type of a token; `unknown` is SentencePiece's token for what it cannot spell, whose bytes have a type."""
    name = names.get(id_)
    if name is None:
        return UNUSED
    if unknown is not None and (name == unknown or _BYTE.fullmatch(name)):
        return UNKNOWN if name == unknown else BYTE
    if id_ not in added:
        return NORMAL
    return CONTROL if added[id_].special else USER_DEFINED


def _merges(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in info["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _ranks(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The order in which merges make tokens, from 0."""
    return {token: rank for rank, token in enumerate(dict.fromkeys(left + right for left, right in merges))}


def _adds_space(tokenizer: Any) -> bool:
    """Whether text behind the begin token starts with a space; without a begin token, whether any text does."""
    begin = tokenizer.bos_token or ""
    has_begin = bool(begin) and tokenizer.encode("a")[:1] == tokenizer.encode(begin, add_special_tokens=False)[:1]
    ids = tokenizer.encode(f"{begin}a" if has_begin else "a", add_special_tokens=False)
    return bool(tokenizer.convert_ids_to_tokens(ids[int(has_begin)]).startswith("▁"))


# What llama.cpp can follow


def pre_of(info: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a tokenizer.json splits text. Raises `ModelError` where it has none."""
    kind = info["model"].get("type")
    if kind != "BPE":
        raise ModelError(f"no GGUF can be written with a tokenizer of type {kind}, only with BPE; use --to merged")
    split_steps = _steps(info.get("pre_tokenizer"))
    if info["model"].get("byte_fallback"):
        _require_sentencepiece(info, split_steps)
        return SENTENCEPIECE
    for name, steps in _SPLITS.items():
        if split_steps == steps:
            return name
    raise ModelError(
        f"no GGUF can be written: the tokenizer splits text in a way that has no name here ({', '.join(_SPLITS)}); use"
        " --to merged"
    )


def _require_sentencepiece(info: Mapping[str, Any], split_steps: tuple[tuple[str, Any], ...]) -> None:
    """Raise `ModelError` where llama.cpp would spell or join pieces otherwise."""
    if (_normal_steps(info.get("normalizer")), split_steps) not in _SPACES:
        raise ModelError(
            "no GGUF can be written: the tokenizer has SentencePiece's pieces, but writes spaces otherwise; use --to"
            " merged"
        )
    if (count := _unlisted(info)) > len(info["model"]["merges"]) // _FEW:
        raise ModelError(
            f"no GGUF can be written: llama.cpp would join {count:,} pairs of pieces that the tokenizer keeps apart, as"
            " its merges are not SentencePiece's; use --to merged"
        )


def _unlisted(info: Mapping[str, Any]) -> int:
    """Pairs of pieces that make another piece and are no merge."""
    merges = set(_merges(info))
    added = {token["content"] for token in info.get("added_tokens") or ()}
    pieces = {token for token in info["model"]["vocab"] if token not in added and not _BYTE.fullmatch(token)}
    pairs = ((piece[:at], piece[at:]) for piece in pieces for at in range(1, len(piece)))
    return sum(left in pieces and right in pieces and (left, right) not in merges for left, right in pairs)


def _normal_steps(info: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    """The normalizer's steps, in the form of `_SPACES`, without that to composed characters (NFC)."""
    if info is None or info["type"] == "NFC":
        return ()
    if info["type"] == "Sequence":
        return tuple(step for part in info["normalizers"] for step in _normal_steps(part))
    if info["type"] == "Prepend":
        return (("Prepend", info["prepend"]),)
    if info["type"] == "Replace" and info["content"] == "▁":
        return (("Replace", info["pattern"].get("String")),)
    return ((info["type"], "of its own"),)


_SPLIT_TEXTS: Mapping[tuple[str, bool], str] = {
    ("Isolated", False): "Regex",
    ("MergedWithPrevious", False): "String",
}
"""The kinds of patterns that a step of `_SPLITS` or `_SPACES` has, by behavior and `invert`."""
_SETTINGS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "ByteLevel": lambda info: "of its own" if info["add_prefix_space"] else info["use_regex"],
    "Digits": lambda info: info["individual_digits"],
    "Metaspace": lambda info: info["prepend_scheme"] if info["replacement"] == "▁" else "of its own",
    "Split": lambda info: info["pattern"].get(_SPLIT_TEXTS.get((info["behavior"], info["invert"]))),
}


def _steps(info: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    """The pre-tokenizer's steps with their settings, in the form of `_SPLITS`; unusual settings match none of those."""
    if info is None:
        return ()
    kind = info["type"]
    if kind == "Sequence":
        return tuple(step for part in info["pretokenizers"] for step in _steps(part))
    return ((kind, _SETTINGS[kind](info) if kind in _SETTINGS else "of its own"),)
