"""Finds what many prompts of a set share at their start or end, such as a template; compares prompts without it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations, islice
from typing import NamedTuple, TypeVar

from distill.text.rouge_index import Neighbour, NoveltyIndex
from distill.text.tokens import normalise, rouge_l
from distill.text.words import comparable, is_spaceless, units

Text = TypeVar("Text", str, list[str])

LEAST_PROMPTS = 10
"""Least number of different prompts that share a frame."""
SHARE_PER_WORD = 0.4
"""A frame of w words is shared by at least this to the power of w - 1 of the prompts: of two words by 40%, of three by
16%, of five by 2.6%, of ten words by ten of 38,000. Ordinary English stays below: the greatest (w - 1)-th root of a
share is 0.34 in 112 tasks that a small model wrote (`what is the`), 0.24 in 985 of Alpaca's (`generate a list of`), and
0.08 in Self-Instruct's 175 seeds. A template that one prompt in 6 has exceeds it from three words on."""
STEADY, STEADY_WORDS = 0.98, 0.75
"""Share of the prompts with one word that also have the next, from which the step is steady; and the share of a
frame's words after the first that follow by steady steps. Copies of a prompt, each with a word or two changed, lose
some at almost every word: they are near-duplicates, not contents of a template. A single word is a frame if `STEADY` of
the prompts have it."""
DIFFERENT, EXAMINED, CHARACTERS = 0.6, 20, 1_000
"""Greatest ROUGE-L of two different contents, each without the end that both have; the number of prompts of a frame
whose contents are compared, and their first characters: at least half of the pairs are different."""
MOST_FORKS = 100
"""Places at which prompts part, after which no longer frame is sought; bounds the time for prompts that part at each
word."""
LETTER = 0.5
"""Words for which a letter counts in a script without spaces."""


class Frame(NamedTuple):
    """What prompts share: their start and their end, normalised; both are empty for no frame."""

    start: str = ""
    end: str = ""

    def __bool__(self) -> bool:
        return bool(self.start or self.end)

    def __str__(self) -> str:
        return f"{self.start.strip()} … {self.end.strip()}".strip()

    def inside(self, text: str) -> str:
        """A normalised text that has this frame, without it."""
        return text[len(self.start) : len(text) - len(self.end)]

    def fits(self, text: str) -> bool:
        """Whether a normalised text has this frame around something else."""
        inside = self.inside(text)
        if text != f"{self.start}{inside}{self.end}" or not _has_tokens(inside):
            return False
        return not _is_one_unit(self.start[-1:] + inside[0]) and not _is_one_unit(inside[-1] + self.end[:1])


class FramedText(NamedTuple):
    """A text to compare, without the frame of its prompt."""

    text: str
    frame: Frame = Frame()


class PromptFrames:
    """The frames of a set of prompts.

    A frame is a start and an end that at least `LEAST_PROMPTS` different prompts share, more of them than share as many
    words of ordinary language (`SHARE_PER_WORD`), not fewer at every word (`STEADY`), and around contents that differ
    (`DIFFERENT`). What extends a frame is measured by the prompts that share the shorter one, so that a frame around
    all prompts changes nothing else. A prompt that is nothing but a frame has none.
    """

    def __init__(self, prompts: Iterable[str] = ()) -> None:
        texts = list(dict.fromkeys(map(normalise, prompts)))
        frames = _frames(texts) if len(texts) >= LEAST_PROMPTS else []
        self._frames = sorted(filter(None, set(frames)), key=lambda frame: -len("".join(frame)))
        self._known = dict(zip(texts, frames, strict=True)) if self._frames else {}

    def __bool__(self) -> bool:
        return bool(self._frames)

    def of(self, prompt: str) -> Frame:
        """The frame of a prompt of the set; for another prompt, the longest frame that fits."""
        text = normalise(prompt) if self._frames else ""
        known = self._known.get(text)
        return known if known is not None else next((one for one in self._frames if one.fits(text)), Frame())

    def without(self, prompt: str) -> FramedText:
        """The prompt without its frame, normalised; a prompt without a frame as it is."""
        frame = self.of(prompt)
        return FramedText(frame.inside(normalise(prompt)).strip() if frame else prompt, frame)

    def counts(self, prompts: Iterable[str]) -> list[tuple[str, int]]:
        """Each frame and the number of prompts with it, the most frequent first."""
        return Counter(str(frame) for frame in map(self.of, prompts) if frame).most_common()


def _frames(texts: Sequence[str]) -> list[Frame]:
    """The frame of each normalised prompt.

    Starts and ends of all prompts come first, then the ends and the starts of those that have one frame so far.
    """
    frames = [Frame()] * len(texts)
    for backwards, within_frames in ((False, False), (True, False), (True, True), (False, True)):
        groups: dict[Frame, list[int]] = defaultdict(list)
        for place, frame in enumerate(frames):
            groups[frame if within_frames else Frame()].append(place)
        if within_frames and len(groups) == 1:
            break
        for group in groups.values():
            rests = [frames[place].inside(texts[place])[:: -1 if backwards else 1] for place in group]
            for place, rest, length in zip(
                group, rests, _shared_starts(rests, units(backwards=backwards)), strict=True
            ):
                start, end = frames[place]
                shared = rest[:length]
                frames[place] = Frame(start, shared[::-1] + end) if backwards else Frame(start + shared, end)
    return [one if one and _has_tokens(one.inside(text)) else Frame() for one, text in zip(frames, texts, strict=True)]


def _has_tokens(text: str) -> bool:
    return bool(comparable(text[:CHARACTERS]) or comparable(text[CHARACTERS:]))


class _Node(NamedTuple):
    """Texts with the same start, and the longest frame within it."""

    places: list[int]
    length: int
    """Characters of the start."""
    words: float
    """Words of it beyond the frame."""
    steady: float
    """Words of these that follow by a steady step."""
    frame: int
    """Characters of the frame."""
    sharing: int
    """Texts that share the frame."""
    forks: int = 0
    """Places on the way at which texts part."""

    def going_on(self, units: Sequence[str], places: list[int]) -> _Node:
        """The node of those texts that go on with these units."""
        words = sum(map(_words, units))
        return self._replace(
            places=places,
            length=self.length + sum(map(len, units)),
            forks=self.forks + (len(places) < len(self.places)),
            words=self.words + words,
            steady=self.steady + (words if len(places) >= STEADY * len(self.places) else 0),
        )

    def may_be_frame(self) -> bool:
        """Whether enough texts share the start, and do not lose some at every word."""
        least = max(LEAST_PROMPTS, self.sharing * min(STEADY, SHARE_PER_WORD ** (self.words - 1)))
        return (
            bool(self.words or self.frame)
            and len(self.places) >= least
            and self.steady >= STEADY_WORDS * (self.words - 1)
        )


def _shared_starts(texts: Sequence[str], unit: re.Pattern[str]) -> list[int]:
    """The length of the frame with which each text starts, 0 without one."""
    lengths = [0] * len(texts)
    stack = [_Node(list(range(len(texts))), 0, 0.0, 0.0, 0, len(texts))]
    while stack:
        node = _longest(stack.pop(), texts, unit)
        if node.may_be_frame() and _are_contents(texts[place][node.length :][:CHARACTERS] for place in node.places):
            node = node._replace(words=0.0, steady=0.0, frame=node.length, sharing=len(node.places))
        parts: dict[str, list[int]] = defaultdict(list)
        for place in node.places:
            match = unit.match(texts[place], node.length)
            parts[match[0] if match else ""].append(place)
        for key, places in parts.items():
            if key and len(places) >= LEAST_PROMPTS and node.forks < MOST_FORKS:
                stack.append(node.going_on([key], places))
                continue
            for place in places:
                lengths[place] = node.frame
    return lengths


def _are_contents(texts: Iterable[str]) -> bool:
    """Whether these are contents of a template, and not copies of one text."""
    pairs = list(combinations(map(comparable, islice(texts, EXAMINED)), 2))
    different = sum(rouge_l(*_without_common_end(one, other)) <= DIFFERENT for one, other in pairs)
    return 2 * different >= len(pairs)


def _longest(node: _Node, texts: Sequence[str], unit: re.Pattern[str]) -> _Node:
    """The node with the longest start that all its texts share, save its last unit, which may go on in some of them."""
    from rapidfuzz.distance import Prefix

    some = [texts[place] for place in node.places]
    first, last = min(some), max(some)
    return node.going_on(unit.findall(first, node.length, Prefix.similarity(first, last))[:-1], node.places)


def _words(unit: str) -> float:
    """Words for which a unit counts; 0 for a sign."""
    if is_spaceless(unit):
        return LETTER
    return float(unit[-1].isalnum() or unit.strip()[0].isalnum())


def _is_one_unit(pair: str) -> bool:
    return len(pair.strip()) == 2 and units().fullmatch(pair) is not None


class PromptIndex:
    """Texts compared by ROUGE-L without their frames.

    Two texts with different frames are near only if they are so with all of these that is not the same in both: to
    translate a text and to summarise it are two tasks. So no frame makes two texts near that were not.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._index = NoveltyIndex(threshold)
        self._texts: dict[str, FramedText] = {}

    def add(self, id: str, text: FramedText) -> None:
        """Append a text."""
        self._index.add(id, text.text)
        self._texts[id] = text

    def near(self, text: FramedText) -> Neighbour | None:
        """The most similar text above the threshold, else `None`."""
        best = self._index.near(text.text)
        if best is None or self._texts[best.id].frame == text.frame:
            return best
        for one in self._index.all_near(text.text):
            other = self._texts[one.id]
            if other.frame == text.frame:
                return one
            likeness = rouge_l(*map(comparable, differing(text, other)))
            if likeness > self._threshold:
                return Neighbour(one.id, min(one.rouge_l, likeness))
        return None


def differing(one: FramedText, other: FramedText) -> tuple[str, str]:
    """Two texts, each with the part of its frame that differs from the other's."""
    starts = _without_common_ends(one.frame.start, other.frame.start)
    ends = _without_common_ends(one.frame.end, other.frame.end)
    return f"{starts[0]} {one.text} {ends[0]}", f"{starts[1]} {other.text} {ends[1]}"


def _without_common_ends(one: str, other: str) -> tuple[str, str]:
    from rapidfuzz.distance import Prefix

    start = Prefix.similarity(one, other)
    return _without_common_end(one[start:], other[start:])


def _without_common_end(one: Text, other: Text) -> tuple[Text, Text]:
    from rapidfuzz.distance import Postfix

    end = Postfix.similarity(one, other)
    return one[: len(one) - end], other[: len(other) - end]
