"""Near-duplicates by MinHash over shingles, for texts of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from distill import recipe
from distill.core.hashing import hash64
from distill.curate.filters import Compared, both_ends, frames_of, without_frame
from distill.text.prompt_frames import FramedText, PromptFrames, differing
from distill.text.tokens import normalise
from distill.text.words import comparable, likeness_as_written
from distill.types import Session, Verdict

Hashes: TypeAlias = NDArray[np.uint64]

HASHES = 128
"""Length of a signature: the number of minima."""
MOST_MISSED = 0.01
"""Greatest probability of missing a pair exactly at the threshold; pairs above it are missed less often."""
AT_ONCE = 2_000
"""Texts hashed together, so that their shingles stay in the core's cache."""


class MinHash:
    """MinHash signatures in bands (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4).

    Rows that share a band are candidates, and are compared by the true Jaccard index of their shingles, those with the
    same words by their characters: no row is dropped by an estimate. What at least ten prompts share does not count
    (`PromptFrames`). Clustering is greedy and in task order: each row is compared with the earlier rows still kept, the
    first of similar rows is kept, and a dropped row causes no other to be dropped. So appended rows change no verdict
    unless they make a frame, and of rows that are all near each other exactly the first is kept. Connected components
    (datatrove, text-dedup) would drop rows that resemble no kept one, and let a late row drop an early one.

    Time grows with the number of candidates: nearly linear for texts that differ, quadratic in rows of one template
    that stay just below the threshold (1 µs per pair; put `near_duplicate` first, which removes most of them).
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: minhash`."""

        jaccard: Annotated[float, Field(gt=0, le=1)] = 0.7
        """Least Jaccard index of duplicates (datatrove's 14 bands of 8 find half of the pairs at 0.72)."""
        shingle: Literal["words", "chars"] = "words"
        """Runs of words, without case and punctuation; or of characters, case-folded."""
        size: Annotated[int, Field(ge=1, le=50)] | None = None
        """Length of a run; by default 3 words (prompts have about ten words; datatrove takes 5 for pages), or 24
        characters (NeMo Curator)."""
        on: Compared = "prompt"

    scope: Literal["set"] = "set"
    takes_frames = True
    """The stage gives `decide_all` the frames of all prompts."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide_all(self, sessions: Sequence[Session], frames: PromptFrames | None = None) -> list[Verdict]:
        """A verdict's value is the Jaccard index with the most similar kept row among the candidates.

        `frames` are by default those of the sessions. As in `PromptIndex`, rows with different frames are near only if
        they are so with what differs between these too.
        """
        frames = frames_of(sessions) if frames is None else frames
        texts = [without_frame(session, self.options.on, frames) for session in sessions]
        shingles = [one for some in self._shingles(texts) for one in some]
        bands = _shared_bands(shingles, bands_and_rows(self.options.jaccard))
        kept: dict[int, list[int]] = {}
        verdicts = []
        for place in range(len(sessions)):
            own_bands = bands.get(place, ())
            candidates = sorted({other for band in own_bands for other in kept.get(band, ())})
            jaccard, near = self._nearest(texts, shingles, place, candidates)
            keep = jaccard < self.options.jaccard
            for band in own_bands if keep else ():
                kept.setdefault(band, []).append(place)
            verdicts.append(
                Verdict(
                    rule="minhash",
                    keep=keep,
                    reason="ok" if keep else "near_duplicate",
                    value=round(jaccard, 4),
                    threshold=self.options.jaccard,
                    neighbour=None if keep else sessions[near].id,
                )
            )
        return verdicts

    def _nearest(
        self, texts: Sequence[FramedText], shingles: Sequence[Hashes], place: int, others: Sequence[int]
    ) -> tuple[float, int]:
        """The greatest similarity of a row to others, and that row, the first of equals; without others 0 and -1."""
        one = texts[place]
        others = [each for each in others if one.frame == texts[each].frame or self._differ_little(one, texts[each])]
        if not others:
            return 0.0, -1
        similarity = _jaccard(shingles, place, others)
        for equal in np.flatnonzero(similarity == 1.0).tolist():
            similarity[equal] = self._likeness(texts[place], texts[others[equal]])
        best = int(similarity.argmax())
        return float(similarity[best]), others[best]

    def _differ_little(self, one: FramedText, other: FramedText) -> bool:
        """Whether two rows are near with what differs between their frames."""
        shingles = next(self._shingles([FramedText(text) for text in differing(one, other)]))
        return bool(_jaccard(shingles, 0, [1])[0] >= self.options.jaccard)

    def _likeness(self, *equal: FramedText) -> float:
        """1, or less for two rows with the same words that differ as written."""
        one, other = (both_ends(framed.text) for framed in equal)
        is_same = self.options.shingle == "words" and comparable(one) == comparable(other)
        return likeness_as_written(one, other) if is_same else 1.0

    def _shingles(self, framed: Sequence[FramedText]) -> Iterator[list[Hashes]]:
        words = self.options.shingle == "words"
        size = self.options.size or (3 if words else 24)
        hash_of = cache(hash64)
        for start in range(0, len(framed), AT_ONCE):
            texts = [both_ends(each.text) for each in framed[start : start + AT_ONCE]]
            yield _shingle_hashes([comparable(text) if words else normalise(text) for text in texts], size, hash_of)


def bands_and_rows(jaccard: float) -> tuple[int, int]:
    """Bands and rows per band: the most rows at which a pair at the threshold is missed 1% of the time at most.

    A pair with Jaccard index s shares none of b bands of r rows with probability (1 - s^r)^b.
    """
    fitting = (rows for rows in range(1, 17) if (1 - jaccard**rows) ** (HASHES // rows) <= MOST_MISSED)
    rows = max(fitting, default=1)
    return HASHES // rows, rows


def _shingle_hashes(texts: Sequence[Sequence[str]], size: int, hash_of: Callable[[str], int]) -> list[Hashes]:
    """The distinct shingles of each text as sorted 64-bit hashes; a text shorter than a shingle is one shingle."""
    lengths = np.array([len(text) for text in texts])
    tokens = np.fromiter((hash_of(token) for text in texts for token in text), np.uint64, int(lengths.sum()))
    ends = np.cumsum(lengths)
    results = []
    runs = _runs(tokens, size)
    for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
        if 0 < length < size:
            results.append(_runs(tokens[end - length : end], length))
        else:
            results.append(np.unique(runs[end - length : max(end - size + 1, end - length)]))
    return results


def _runs(tokens: Hashes, size: int) -> Hashes:
    """A hash of each run of `size` tokens, mixed as in SplitMix64 (Steele et al. 2014): (tokens,) to (runs,)."""
    count = max(0, len(tokens) - size + 1)
    hashes = np.full(count, size, dtype=np.uint64)
    for place in range(size):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + tokens[place : place + count]
        hashes ^= hashes >> np.uint64(29)
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(31))


def _shared_bands(shingles: Sequence[Hashes], shape: tuple[int, int]) -> dict[int, list[int]]:
    """For each text that shares a band with another, the numbers of those bands' buckets; `shape`: (bands, rows)."""
    bands, rows = shape
    signatures = _signatures(shingles, bands * rows)
    nonempty = np.flatnonzero([len(one) > 0 for one in shingles])
    buckets: dict[int, list[int]] = {}
    bucket = 0
    for band in range(bands):
        keys = _runs_of_columns(signatures[band * rows : (band + 1) * rows, nonempty])
        _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
        for member in np.flatnonzero(counts[group] > 1).tolist():
            buckets.setdefault(int(nonempty[member]), []).append(bucket + int(group[member]))
        bucket += len(counts)
    return buckets


def _signatures(shingles: Sequence[Hashes], hashes: int) -> NDArray[np.uint32]:
    """The minimum under each permutation of 32-bit values (odd factor, addend): (hashes, texts)."""
    random = np.random.Generator(np.random.PCG64(1997))
    factors = random.integers(0, 2**32, hashes, dtype=np.uint32) | np.uint32(1)
    addends = random.integers(0, 2**32, hashes, dtype=np.uint32)
    signatures = np.zeros((hashes, len(shingles)), dtype=np.uint32)
    for start in range(0, len(shingles), AT_ONCE):
        some = [place for place in range(start, min(start + AT_ONCE, len(shingles))) if len(shingles[place])]
        if some:
            values = np.concatenate([shingles[place] for place in some])
            high = (values >> np.uint64(32)).astype(np.uint32)
            firsts = np.cumsum([0, *(len(shingles[place]) for place in some[:-1])])
            for row in range(hashes):
                signatures[row, some] = np.minimum.reduceat(high * factors[row] + addends[row], firsts)
    return signatures


def _runs_of_columns(rows: Any) -> Hashes:
    """One hash per column: (rows, texts) to (texts,)."""
    hashes = np.zeros(rows.shape[1], dtype=np.uint64)
    for row in rows:
        hashes = (hashes ^ row) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(32)
    return hashes


def _jaccard(shingles: Sequence[Hashes], place: int, others: Sequence[int]) -> NDArray[np.float64]:
    """The Jaccard index of a row's shingles with those of each of the others."""
    lengths = np.array([len(shingles[other]) for other in others])
    hits = np.isin(np.concatenate([shingles[other] for other in others]), shingles[place], kind="sort")
    common = np.add.reduceat(hits, np.cumsum([0, *lengths[:-1]]), dtype=np.int64)
    similarity: NDArray[np.float64] = common / (lengths + len(shingles[place]) - common)
    return similarity
