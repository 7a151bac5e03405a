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
_SLACK = 1e-4
"""Prunes so much below what is wanted: rapidfuzz's cutoffs are not exact (it misses scores 1e-9 above one)."""
_UNKNOWN = "\0"


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

    Texts are looked up by the query's tokens, rarest first. A text that has none of the first r of m tokens has
    L <= m - r, so F <= 2(m - r)/(2m - r): the search ends where that is below the best found, mostly before it comes to
    the frequent words. It leaves out nothing.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._ids: list[str] = []
        self._texts: list[str] = []
        self._characters: dict[str, str] = {}
        self._places: dict[str, set[int]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str, tokens: Sequence[str]) -> None:
        """Put a text, as `comparable` tokens, behind those of before."""
        text = "".join([self._character(token) for token in tokens])
        for character in set(text):
            self._places.setdefault(character, set()).add(len(self._texts))
        self._ids.append(id)
        self._texts.append(text)

    def nearest(self, tokens: Sequence[str]) -> Neighbour | None:
        """The most similar text; `None` when nothing is similar at all."""
        return self._best(tokens, least=_SLACK)

    def near(self, tokens: Sequence[str]) -> Neighbour | None:
        """The most similar text if it is above the threshold, else `None`; faster than `nearest`."""
        best = self._best(tokens, least=self.threshold - _SLACK)
        return best if best is not None and self.is_near(best) else None

    def is_near(self, neighbour: Neighbour) -> bool:
        """Whether a neighbour is above the threshold; exactly at it is not."""
        return neighbour.rouge_l > self.threshold

    def _best(self, tokens: Sequence[str], *, least: float) -> Neighbour | None:
        query = "".join([self._characters.get(token, _UNKNOWN) for token in tokens])
        best: tuple[float, int] | None = None
        seen: set[int] = set()
        for rank, character in enumerate(sorted(query, key=self._frequency)):
            left = len(query) - rank
            if 2 * left / (len(query) + left) < least:
                break
            fresh = self._places.get(character, seen) - seen
            seen |= fresh
            found = self._best_among(query, sorted(fresh), least)
            if found is not None and (best is None or found > best):
                best, least = found, max(least, found[0] - _SLACK)
        return None if best is None else Neighbour(self._ids[-best[1]], best[0])

    def _best_among(self, query: str, places: Sequence[int], least: float) -> tuple[float, int] | None:
        """F and the negated place, so that the greater pair is the more similar or the earlier text."""
        texts = [self._texts[place] for place in places]
        found = process.extractOne(query, texts, scorer=Indel.normalized_similarity, score_cutoff=least)
        if found is None:
            return None
        equal = [found[2]]
        if abs(found[1] - self.threshold) < _SLACK:  # texts that differ by rounding alone: one of them decides
            cutoff = found[1] - _SLACK
            hits = process.extract_iter(query, texts, scorer=Indel.normalized_similarity, score_cutoff=cutoff)
            equal = [index for _, _, index in hits]
        return max((self._f(query, texts[index]), -places[index]) for index in equal)

    @staticmethod
    def _f(query: str, text: str) -> float:
        return f_measure(LCSseq.similarity(query, text), len(query), len(text))

    def _frequency(self, character: str) -> int:
        return len(self._places.get(character, ()))

    def _character(self, token: str) -> str:
        character = self._characters.get(token)
        if character is None:
            if len(self._characters) + 1 >= _CODE_POINTS:
                raise DistillError(f"more than {_CODE_POINTS - 2} distinct words; compare fewer texts at once")
            character = self._characters[token] = chr(len(self._characters) + 1)
        return character
