"""Whether two tokenizers are one: by the bytes of each id, never by the size of a vocabulary.

Models of one family pad their vocabulary differently (Qwen2.5 has 151,936 rows or 152,064 for one tokenizer), and two
vocabularies of one size may share no token.
"""

from __future__ import annotations

from typing import Any

from distill.models.token_bytes import Spelling


def difference(one: Any, other: Any) -> str:
    """The first difference of two tokenizers of transformers, by id → bytes, then special tokens; empty for none."""
    if len(one) != len(other):
        return f"{len(one):,} tokens against {len(other):,}"
    ids = range(len(one))
    for id_, (here, there) in enumerate(zip(Spelling(one).pieces(ids), Spelling(other).pieces(ids), strict=True)):
        if here != there:
            return f"token {id_} is {here!r} against {there!r}"
    special = set(one.all_special_ids) ^ set(other.all_special_ids)
    return f"token {min(special)} is special in one of them only" if special else ""
