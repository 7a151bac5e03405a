"""Word tokens and ROUGE-L as in the literature, and escaping of unprintable characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

_NOT_ROUGE = re.compile(r"[^a-z0-9]+")
_ASCII = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}
"""Translation of ASCII characters; five times as fast as a regular expression."""


def rouge_tokens(text: str) -> list[str]:
    """Tokens as rouge_score makes them without stemming: runs of [a-z0-9] of the lower-cased text."""
    if text.isascii():
        return text.translate(_ASCII).split()
    return _NOT_ROUGE.sub(" ", text.lower()).split()


def normalise(text: str) -> str:
    """The text for exact comparison: case folded, white space collapsed."""
    return " ".join(text.casefold().split())


def n_grams(tokens: Sequence[str], n: int) -> zip[tuple[str, ...]]:
    """All runs of n consecutive tokens, in order."""
    return zip(*(islice(tokens, start, None) for start in range(n)), strict=False)


def rouge_l(prediction: Sequence[str], target: Sequence[str]) -> float:
    """ROUGE-L F-measure (Lin, 2004) of two token lists, in [0, 1].

    The float expression is rouge_score's own, so that decisions at a threshold are the same to the last bit.
    """
    from rapidfuzz.distance import LCSseq

    common = LCSseq.similarity(prediction, target)
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(target)
    return 2 * precision * recall / (precision + recall)


_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters except tab and line feed, direction marks, zero-width characters (except the joiners that scripts
and emoji need), lone surrogates (which UTF-8 cannot encode) and tag characters."""


def visible(text: str) -> str:
    """The text with characters that hide or reorder others shown as ⟦U+202E⟧; line ends become line feeds."""
    return _HIDDEN.sub(lambda match: f"⟦U+{ord(match[0]):04X}⟧", text.replace("\r\n", "\n"))


_CONTROL = re.compile(
    r"<(?=\|[^|<>\s]{1,40}\|>|\uff5c[^\uff5c<>\s]{1,40}\uff5c>|/?s>|/?(?:bos|eos|pad|unk)>|<?/?SYS>>|(?:start|end)_of_turn>)"
    r"|\[(?=/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS)\])"
)
"""Start of a chat template's control token, which a server may interpret inside a message."""


def harmless(text: str) -> str:
    """The text with a space in each control token of a chat template, which makes it plain text again.

    Other text stays as it is.
    """
    return _CONTROL.sub(lambda match: f"{match[0]} ", text)
