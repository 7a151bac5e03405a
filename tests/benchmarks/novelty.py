"""Novelty by ROUGE-L: a stream as long as Alpaca's list, beside the loop that Alpaca ran."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import psutil
from rouge_score.rouge_scorer import _score_lcs

from distill.core import assets
from distill.core.jsonl import read_jsonl
from distill.text.rouge_index import Neighbour, NoveltyIndex
from distill.text.words import comparable
from tests.benchmarks.arena import Check, Findings

TEXTS, QUICK_TEXTS = 52_000, 4_000
SAMPLE, QUICK_SAMPLE = 3_000, 500
"""Texts whose decisions are compared with rouge_score's."""
PAIRS, QUICK_PAIRS = 40_000, 4_000
"""Pairs by which Alpaca's loop is timed."""
THRESHOLD = 0.7
MEAN_WORDS, DEVIATION = 10.7, 4.4
"""Of 1,174 real instructions: 10.7 words on average, 18 at the 95th percentile."""
FREQUENT, FREQUENT_SHARE = 100, 0.6
"""Six words of ten are drawn from the hundred most frequent, as often as those occur; the others from all alike."""
COPIES = 0.3
"""Share of texts that repeat an earlier one with one to five words changed; about half of them are then too similar."""
MOST_SECONDS, MOST_BYTES, TIMES_FASTER, DOUBLED = 20.0, 1e9, 1000.0, 3.0

Tokens = Sequence[str]


def run(*, quick: bool) -> Findings:
    """Decide the stream, with each text's nearest neighbour as expansions record it; then the loop, on a sample."""
    count = QUICK_TEXTS if quick else TEXTS
    tokens = stream(2 * count, seed=1)
    texts = [" ".join(each) for each in tokens]
    once = _decided("nearest", texts[:count], NoveltyIndex.nearest)
    bytes_used = psutil.Process().memory_info().rss
    twice = _decided("nearest, twice the stream", texts, NoveltyIndex.nearest)
    near = _decided("near, for decisions alone", texts[:count], NoveltyIndex.near)
    pair_seconds = _seconds_a_pair(tokens[:count], QUICK_PAIRS if quick else PAIRS)
    loop_seconds = pair_seconds * once["pairs"]
    differing, looked_at = _differing(stream(QUICK_SAMPLE if quick else SAMPLE, seed=2))
    checks = [
        Check("seconds", once["seconds"], MOST_SECONDS),
        Check("resident memory, GB", bytes_used / 1e9, MOST_BYTES / 1e9),
        Check("times as fast as Alpaca's loop", loop_seconds / once["CPU seconds"], TIMES_FASTER, at_least=True),
        Check("times as long for twice the stream", twice["CPU seconds"] / once["CPU seconds"], DOUBLED),
        Check("neighbours or scores unlike rouge_score's", differing, 0),
    ]
    notes = [
        f"Alpaca's loop: {pair_seconds * 1e6:.1f} µs a pair, {loop_seconds / 3600:.1f} core hours for the stream",
        f"the sample of {QUICK_SAMPLE if quick else SAMPLE} took {looked_at} computations of rouge_score; in all other"
        " pairs the shared words alone keep it below the nearest",
    ]
    return Findings([once, twice, near], checks, notes)


def stream(count: int, *, seed: int) -> list[list[str]]:
    """So many texts, as tokens, from the words of the shipped seeds."""
    rng, texts = random.Random(seed), list[list[str]]()
    counts = _counts()
    words = sorted(counts)
    frequent = [word for word, _ in counts.most_common(FREQUENT)]
    weights = [counts[word] for word in frequent]
    for _ in range(count):
        if texts and rng.random() < COPIES:
            text = list(rng.choice(texts))
            for _ in range(rng.randint(1, 5)):
                text[rng.randrange(len(text))] = rng.choice(words)
        else:
            length = max(3, round(rng.gauss(MEAN_WORDS, DEVIATION)))
            often = (rng.random() < FREQUENT_SHARE for _ in range(length))
            text = [rng.choices(frequent, weights)[0] if each else rng.choice(words) for each in often]
        texts.append(text)
    return texts


def _counts() -> Counter[str]:
    seeds = list(read_jsonl(assets.find("prompts/seeds/general.jsonl")))
    texts = [seed["instruction"] for seed in seeds]
    texts += [text for seed in seeds for instance in seed["instances"] for text in instance.values()]
    return Counter(word for text in texts for word in comparable(text))


def _decided(name: str, texts: Sequence[str], look: Callable[[NoveltyIndex, str], Neighbour | None]) -> dict[str, Any]:
    """Take each text that is not near one before; in one thread."""
    index, pairs = NoveltyIndex(THRESHOLD), 0
    wall, cpu = time.perf_counter(), time.process_time()
    for number, text in enumerate(texts):
        pairs += len(index)
        found = look(index, text)
        if found is None or not index.is_near(found):
            index.add(str(number), text)
    return {
        "by": name,
        "texts": len(texts),
        "taken": len(index),
        "pairs": pairs,
        "seconds": time.perf_counter() - wall,
        "CPU seconds": time.process_time() - cpu,
    }


def _seconds_a_pair(texts: Sequence[Tokens], pairs: int) -> float:
    """What Alpaca does for each text before: rouge_score's longest common subsequence, of tokens made once."""
    rng = random.Random(3)
    drawn = [(rng.choice(texts), rng.choice(texts)) for _ in range(pairs)]
    started = time.process_time()
    for one, other in drawn:
        _ = _score_lcs(one, other).fmeasure > THRESHOLD
    return (time.process_time() - started) / pairs


def _differing(texts: Sequence[Tokens]) -> tuple[int, int]:
    """Neighbours that are not rouge_score's over the same stream, and how many pairs it had to compute.

    A pair is computed when its words alone do not keep it below the score that the index found.
    """
    index, kept, differing, looked_at = NoveltyIndex(THRESHOLD), list[tuple[str, Tokens, frozenset[str]]](), 0, 0
    for number, text in enumerate(texts):
        found = index.nearest(" ".join(text))
        least = 0.0 if found is None else found.rouge_l - 1e-9
        possible = [(id, before) for id, before, words in kept if _bound(text, before, words) >= least]
        scores = [_score_lcs(before, text).fmeasure for _, before in possible]
        looked_at += len(possible)
        best = max(scores, default=0.0)
        differing += found != ((possible[scores.index(best)][0], best) if best else None)
        if best <= THRESHOLD:
            index.add(str(number), " ".join(text))
            kept.append((str(number), text, frozenset(text)))
    return differing, looked_at


def _bound(text: Tokens, before: Tokens, words: frozenset[str]) -> float:
    """What F cannot exceed: all tokens that occur in the other text, in their order."""
    return 2 * min(len(before), sum(word in words for word in text)) / (len(text) + len(before))
