"""Finds the most similar text seen so far, by exact ROUGE-L, fast enough for pools of tens of thousands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Indel, LCSseq

from distill.errors import DistillError
from distill.text import f_measure, rouge_tokens

_SPACELESS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Thai, kana and Han: no spaces between words
_ANY_SCRIPT = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")
_ALNUM = re.compile(r"[^\W_]")
_CODE_POINTS = 0x110000
_ROUNDING = 1e-9


class Neighbour(NamedTuple):
    """A text of the index and how similar it is."""

    id: str
    rouge_l: float
    """F-measure in [0, 1]."""


def comparable(text: str) -> list[str]:
    """The tokens by which two texts are compared.

    These are rouge_score's where it keeps at least half of the letters and digits. It knows [a-z0-9] alone: Chinese or
    Cyrillic texts would have no token and never be near anything, so they are split into words (characters where the
    script writes no spaces) of any alphabet.
    """
    tokens = rouge_tokens(text)
    if 2 * sum(map(len, tokens)) >= len(_ALNUM.findall(text)):
        return tokens
    return _ANY_SCRIPT.findall(text.casefold())


class NoveltyIndex:
    """Texts so far, to be asked for the one nearest to a new text.

    Decisions equal those of rouge_score's `fmeasure > threshold` over every text, without a stemmer. Each distinct
    token becomes one character, so that a bit-parallel LCS runs over plain strings; it ranks by 2L/(m+n), which is F
    but for its rounding, and the last word has F as rouge_score computes it: of the length triples at exactly 0.7,
    about half come out above (L=7, m=8, n=12), and those are near.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._ids: list[str] = []
        self._texts: list[str] = []
        self._characters: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str, tokens: Sequence[str]) -> None:
        """Put a text, as `comparable` tokens, behind those of before."""
        self._ids.append(id)
        self._texts.append("".join([self._character(token) for token in tokens]))

    def nearest(self, tokens: Sequence[str]) -> Neighbour | None:
        """The most similar text, the earliest among equals; `None` when nothing is similar at all."""
        return self._best(tokens, least=0.0)

    def near(self, tokens: Sequence[str]) -> Neighbour | None:
        """The most similar text above the threshold, or `None`: faster than `nearest` by its pruning."""
        best = self._best(tokens, least=self.threshold - _ROUNDING)
        return best if best is not None and self.is_near(best) else None

    def is_near(self, neighbour: Neighbour) -> bool:
        """Whether a neighbour is above the threshold; exactly at it is not."""
        return neighbour.rouge_l > self.threshold

    def _best(self, tokens: Sequence[str], *, least: float) -> Neighbour | None:
        query = "".join([self._characters.get(token, "\0") for token in tokens])
        if not query:
            return None
        found = process.extractOne(query, self._texts, scorer=Indel.normalized_similarity, score_cutoff=least)
        if found is None or found[1] == 0:
            return None
        if abs(found[1] - self.threshold) > _ROUNDING:
            return self._neighbour(query, found[2])
        return self._best_at(query, found[1] - _ROUNDING)

    def _best_at(self, query: str, least: float) -> Neighbour:
        """Among texts that differ by rounding alone, the one with the greatest F: it decides at the threshold."""
        equals = process.extract_iter(query, self._texts, scorer=Indel.normalized_similarity, score_cutoff=least)
        return max((self._neighbour(query, place) for _, _, place in equals), key=lambda each: each.rouge_l)

    def _neighbour(self, query: str, place: int) -> Neighbour:
        text = self._texts[place]
        return Neighbour(self._ids[place], f_measure(LCSseq.similarity(query, text), len(query), len(text)))

    def _character(self, token: str) -> str:
        character = self._characters.get(token)
        if character is None:
            if len(self._characters) + 1 >= _CODE_POINTS:
                raise DistillError(f"more than {_CODE_POINTS - 2} distinct words; compare fewer texts at once")
            character = self._characters[token] = chr(len(self._characters) + 1)
        return character
