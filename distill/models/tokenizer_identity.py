"""Whether two tokenizers are one: by the bytes of each id, never by the size of a vocabulary.

Models of one family pad their vocabulary differently (Qwen2.5 has 151,936 rows or 152,064 for one tokenizer), and two
vocabularies of one size may share no token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.models.token_bytes import Spelling


@dataclass(frozen=True, slots=True)
class TokenizerComparison:
    """Two tokenizers, id by id."""

    same: bool
    """Whether each id spells the same bytes, and the same ids are special."""
    common: int
    """Rows of the vocabulary that both have: ids below it are real tokens. 0 where they differ."""
    difference: str = ""
    """The first difference in a few words."""


def compare(one: Any, other: Any) -> TokenizerComparison:
    """Compare two tokenizers of transformers by id → bytes and by their special tokens."""
    sizes = len(one), len(other)
    if sizes[0] != sizes[1]:
        return TokenizerComparison(False, 0, f"{sizes[0]:,} tokens against {sizes[1]:,}")
    ids = range(sizes[0])
    for id_, (here, there) in enumerate(zip(Spelling(one).pieces(ids), Spelling(other).pieces(ids), strict=True)):
        if here != there:
            return TokenizerComparison(False, 0, f"token {id_} is {here!r} against {there!r}")
    special = set(one.all_special_ids) ^ set(other.all_special_ids)
    if special:
        return TokenizerComparison(False, 0, f"token {min(special)} is special in one of them only")
    return TokenizerComparison(True, sizes[0])
