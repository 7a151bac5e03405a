"""Finds the most similar text seen so far, by exact ROUGE-L, fast enough for pools of tens of thousands."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
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
_NOTHING: Mapping[int, Mapping[int, array[int]]] = {}
FIRST_COUNT = 256
"""Texts at which it is first counted which tokens are rare."""
LOOK_DOWN = (0.5, 0.35, 0.2)
"""Bounds by which the nearest text is looked for, one after the other; most have one above the first or second."""


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
    if text.isascii() or 2 * sum(map(len, tokens)) >= len(_ALNUM.findall(text)):
        return tokens
    return _ANY_SCRIPT.findall(text.casefold())


class NoveltyIndex:
    """Texts so far, to be asked for the one nearest to a new text.

    Decisions equal those of rouge_score's `fmeasure > threshold` over every text, without a stemmer. Each distinct
    token becomes one character, so that a bit-parallel LCS runs over plain strings; it ranks by 2L/(m+n), which is F
    but for its rounding, and the last word has F as rouge_score computes it: of the length triples at exactly 0.7,
    about half come out above (L=7, m=8, n=12), and those are near.

    Few texts are compared, and none is left out that counts: an exact prefix and position filter (Xiao et al., 2008,
    PPJoin). Two texts of m and n tokens with F of at least f share L >= f(m+n)/2 of them. With the tokens of each in
    one order, rarest first, let the first that they share stand at i in one and at j in the other (from 0): then
    L <= m - i and L <= n - j. So texts are kept by token, length and place, and only those within both bounds are
    looked at. Which tokens are rare is counted anew each time that the texts have doubled.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._ids: list[str] = []
        self._texts: list[str] = []
        self._characters: dict[str, str] = {}
        self._ranks: dict[str, int] = {_UNKNOWN: -_CODE_POINTS}
        self._lengths: set[int] = set()
        self._postings: dict[str, dict[int, dict[int, array[int]]]] = {}
        self._count_again = FIRST_COUNT

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str, tokens: Sequence[str]) -> None:
        """Put a text, as `comparable` tokens, behind those of before."""
        self._ids.append(id)
        self._texts.append("".join([self._character(token) for token in tokens]))
        if len(self._texts) < self._count_again:
            self._post(len(self._texts) - 1)
        else:
            self._order_anew()

    def nearest(self, tokens: Sequence[str], *, least: float = 0.0) -> Neighbour | None:
        """The most similar text; `None` when nothing is similar at all, or as much as `least`, which saves time."""
        query = self._query(tokens)
        floor = max(least - _SLACK, _SLACK)
        bounds = [bound for bound in (self.threshold - _SLACK, *LOOK_DOWN) if bound > floor]
        found = (self._best(query, least=bound) for bound in (*bounds, floor))
        return next((best for best in found if best is not None), None)

    def near(self, tokens: Sequence[str]) -> Neighbour | None:
        """The most similar text if it is above the threshold, else `None`; faster than `nearest`."""
        best = self._best(self._query(tokens), least=self.threshold - _SLACK)
        return best if best is not None and self.is_near(best) else None

    def is_near(self, neighbour: Neighbour) -> bool:
        """Whether a neighbour is above the threshold; exactly at it is not."""
        return neighbour.rouge_l > self.threshold

    def _query(self, tokens: Sequence[str]) -> str:
        return "".join([self._characters.get(token, _UNKNOWN) for token in tokens])

    def _best(self, query: str, *, least: float) -> Neighbour | None:
        """The most similar of all texts whose F is `least` or more, if there is one."""
        places = sorted(self._candidates(query, least))
        found = self._best_among(query, places, least)
        return None if found is None else Neighbour(self._ids[-found[1]], found[0])

    def _candidates(self, query: str, least: float) -> set[int]:
        """Places of every text whose F may be `least` or more."""
        length, found = len(query), set[int]()
        common = {other: math.ceil(least * (length + other) / 2) for other in self._lengths}
        shared = [(other, needed) for other, needed in common.items() if needed <= min(other, length)]
        for character, at in self._ordered(query):
            shared = [(other, needed) for other, needed in shared if needed <= length - at]
            if not shared:
                break
            by_length = self._postings.get(character, _NOTHING)
            for other, needed in shared:
                if other in by_length:
                    last = other - needed
                    found.update(*[texts for place, texts in by_length[other].items() if place <= last])
        return found

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

    def _ordered(self, text: str) -> list[tuple[str, int]]:
        """The distinct characters, rarest first, and where each first stands when all are in that order."""
        ordered = sorted(text, key=self._ranks.__getitem__)
        return [(each, at) for at, each in enumerate(ordered) if at == 0 or ordered[at - 1] != each]

    def _post(self, number: int) -> None:
        text = self._texts[number]
        self._lengths.add(len(text))
        for character, at in self._ordered(text):
            by_place = self._postings.setdefault(character, {}).setdefault(len(text), {})
            if at in by_place:
                by_place[at].append(number)
            else:
                by_place[at] = array("I", (number,))

    def _order_anew(self) -> None:
        """Count which tokens are rare; ties are broken one way for all texts, and what comes later is rarer."""
        counts = Counter(character for text in self._texts for character in set(text))
        for rank, character in enumerate(sorted(counts, key=lambda character: (counts[character], character))):
            self._ranks[character] = rank
        self._postings = {}
        self._count_again = 2 * len(self._texts)
        for number in range(len(self._texts)):
            self._post(number)

    def _character(self, token: str) -> str:
        character = self._characters.get(token)
        if character is None:
            if len(self._characters) + 1 >= _CODE_POINTS:
                raise DistillError(f"more than {_CODE_POINTS - 2} distinct words; compare fewer texts at once")
            character = self._characters[token] = chr(len(self._characters) + 1)
            self._ranks[character] = -ord(character)
        return character
