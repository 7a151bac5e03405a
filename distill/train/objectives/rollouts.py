"""Answers that the student samples in training, and figures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

from distill.errors import ModelError
from distill.models.chat_template import IGNORED, Example
from distill.models.generation import GenerationRow, all_end_ids, decode
from distill.models.padding import context_tokens
from distill.models.quantization import unpacked
from distill.train.evaluation import aside
from distill.train.objectives.live_teacher import Reading
from distill.types import Sampling

GRAM = 4
"""Tokens of the pieces whose repetition is counted."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in the tokens of student and teacher, and the teacher's answer to it."""

    ours: list[int]
    theirs: list[int]
    answer: list[int]
    """With its end token, unless it was cut."""
    limit: int
    """Most tokens that the student may write."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """An answer of the student."""

    prompt: Prompt
    tokens: list[int]
    """With the end token, unless it was cut."""
    is_cut: bool

    @property
    def reading(self) -> Reading:
        """The answer after the prompt of each model; all of its tokens are trained."""
        return Reading(_example(self.prompt.ours, self.tokens), _example(self.prompt.theirs, self.tokens))


def prompts_of(reading: Reading, *, limit: int, context: int) -> list[Prompt]:
    """The prompt of each trained answer, for answers of at most `limit` tokens in the teacher's context."""
    ours, theirs = reading.ours.input_ids, reading.theirs.input_ids
    pairs = zip(_answers(reading.ours), _answers(reading.theirs), strict=True)
    return [
        Prompt(ours[:start], theirs[:other], ours[start:stop], min(limit, context - other))
        for (start, stop), (other, _) in pairs
    ]


def longest_answer(examples: Sequence[Example]) -> int:
    """Tokens of the longest trained answer."""
    return max(stop - start for example in examples for start, stop in _answers(example))


def _answers(example: Example) -> list[tuple[int, int]]:
    """Start and end of each run of trained tokens."""
    marks = [False, *(label != IGNORED for label in example.labels), False]
    edges = [place for place in range(len(marks) - 1) if marks[place] != marks[place + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _example(prompt: list[int], answer: list[int]) -> Example:
    return Example(prompt + answer, [IGNORED] * len(prompt) + answer)


def sampled(
    model: Any,
    tokenizer: Any,
    template: str,
    prompts: Sequence[tuple[str, Prompt]],
    *,
    temperature: float,
) -> list[Rollout]:
    """An answer to each prompt, with random numbers by the text beside it; each ends with the first end token.

    Raises `ModelError` where logits are not finite.
    """
    ends, context, sampling = (
        all_end_ids(model, tokenizer, template),
        context_tokens(model),
        Sampling(temperature=temperature),
    )
    rows = [
        GenerationRow(sampling, Random(seed), ends, tokenizer, one.ours, min(one.limit, context - len(one.ours)))
        for seed, one in prompts
    ]
    with aside(model), unpacked(model):
        decode(model, rows)
    if failed := next((row.error for row in rows if row.error is not None), None):
        raise ModelError(f"the student cannot be sampled: {failed}")
    return [Rollout(prompt, row.new, row.finish == "length") for row, (_, prompt) in zip(rows, prompts, strict=True)]


def figures(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """Shares of cut answers and of repeated pieces, mean length, and length by that of the teacher's answers."""
    if not rollouts:
        return dict.fromkeys(("cut", "tokens", "length_ratio", "repetition"))
    written = sum(len(one.tokens) for one in rollouts)
    expected = sum(min(len(one.prompt.answer), one.prompt.limit) for one in rollouts)
    return {
        "cut": fmean(one.is_cut for one in rollouts),
        "tokens": written / len(rollouts),
        "length_ratio": written / expected,
        "repetition": fmean(repetition(one.tokens) for one in rollouts),
    }


def repetition(tokens: Sequence[int]) -> float:
    """Share of the runs of `GRAM` tokens that stand earlier in the same answer."""
    grams = [tuple(tokens[start : start + GRAM]) for start in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
