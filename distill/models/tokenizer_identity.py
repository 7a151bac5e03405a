"""Whether two tokenizers are one: by the bytes of each id and how text is split, never by the size of a vocabulary.

Models of one family pad their vocabulary differently (Qwen2.5 has 151,936 rows or 152,064 for one tokenizer), and two
vocabularies of one size may share no token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.core.embedded import EMBEDDED
from distill.core.files import cache_dir
from distill.core.model_files import local_folder
from distill.models.token_bytes import Spelling

PROBE = (
    "Don't  panic:\t3.14159 × 42 – naïve café, 東京 🙂\n\n    def f(x_1): return x_1['key'] # ünïcode\r\nABCdef 1234567"
)
"""Where pre-tokenizers and normalisers differ: contractions, runs of digits and of white space, case, accents."""


def difference(one: Any, other: Any) -> str:
    """The first difference of two tokenizers, of transformers or `FromFile`; empty for none.

    Compared are id → bytes, special tokens, the merges or scores that decide a split, and the split of `PROBE`.
    """
    if len(one) != len(other):
        return f"{len(one):,} tokens against {len(other):,}"
    ids = range(len(one))
    for id_, (here, there) in enumerate(zip(Spelling(one).pieces(ids), Spelling(other).pieces(ids), strict=True)):
        if here != there:
            return f"token {id_} is {here!r} against {there!r}"
    special = _special(one) ^ _special(other)
    if special:
        return f"token {min(special)} is special in one of them only"
    if (mine := _rules(one)) != (its := _rules(other)):
        return f"the same tokens, split by other rules ({len(mine):,} against {len(its):,})"
    splits = [each.encode(PROBE, add_special_tokens=False) for each in (one, other)]
    return "the same tokens, but other splits of a text" if splits[0] != splits[1] else ""


def _special(tokenizer: Any) -> set[int]:
    return {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}


def _rules(tokenizer: Any) -> Sequence[Any]:
    """The merges of a byte pair encoding, or the scores of a unigram model; empty for others."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return ()
    model = json.loads(backend.to_str())["model"]
    return model.get("merges") or (model["vocab"] if model["type"] == "Unigram" else ())


def tokenizer_file(model: str) -> Path | None:
    """The tokenizer.json of a model, where it is on this machine; `None` where it is not, or is still a .gguf."""
    if model in EMBEDDED:
        one = EMBEDDED[model]
        folder: Path | None = cache_dir() / "models" / f"{one.name}-{one.sha256[:12]}"
    else:
        folder = local_folder(model)
    file = folder / "tokenizer.json" if folder is not None else None
    return file if file is not None and file.is_file() else None


class FromFile:
    """The tokenizer in a tokenizer.json, with what `difference` reads; needs neither torch nor transformers."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(str(path))
        self.backend_tokenizer.no_truncation()

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    @cached_property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Token objects (`content`, `special`) by id."""
        tokens: Mapping[int, Any] = self.backend_tokenizer.get_added_tokens_decoder()
        return tokens

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text."""
        return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Names of ids; that of an id without a token is empty."""
        return [self.backend_tokenizer.id_to_token(id_) or "" for id_ in ids]
