"""Log-likelihoods of given answers under a model in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from distill.engine.providers import ProviderError
from distill.errors import DistillError
from distill.models import chat_template
from distill.models.generation import not_finite
from distill.models.padding import by_length, context_tokens, padded
from distill.models.token_bytes import Spelling, token_texts
from distill.types import Message

BATCH_TOKENS = 1_024
"""Padded tokens in one batch: enough for full speed on a CPU, few enough that rows have similar lengths. Their float32
logits take at most 0.2 GB with a vocabulary of 49,152."""
MAX_ROWS = 64


def loglikelihoods(
    model: Any,
    tokenizer: Any,
    template: str,
    pairs: Sequence[tuple[Sequence[Message], str]],
    *,
    batch_tokens: int = BATCH_TOKENS,
    watch: Callable[[int], None] | None = None,
) -> list[ContinuationScores | ProviderError]:
    """For each (prompt, continuation): log-probabilities, in nats, of the continuation's tokens.

    Prompt and continuation are rendered and tokenised as for training; the end token is excluded, and an empty
    continuation has no tokens. A pair that does not fit the context, cannot be rendered or has no finite sum fails
    alone. `watch` is called after each batch with the number of pairs done.
    """
    texts = [_text(model, tokenizer, template, *pair) for pair in pairs]
    results: list[ContinuationScores | ProviderError] = [
        text if isinstance(text, ProviderError) else ContinuationScores() for text in texts
    ]
    spelling = Spelling(tokenizer)
    scored = [(index, text) for index, text in enumerate(texts) if isinstance(text, _Text) and text.scored]
    done = len(pairs) - len(scored)
    for group in by_length([len(text.ids) for _, text in scored], rows=MAX_ROWS, tokens=batch_tokens):
        with torch.inference_mode():
            scores = _scores(model, [scored[place][1] for place in group])
        for place, one in zip(group, scores, strict=True):
            index, text = scored[place]
            widths = tuple(map(len, token_texts(spelling.pieces(text.ids[text.start :]))))
            results[index] = replace(one, widths=widths) if math.isfinite(one.total) else not_finite()
        done += len(group)
        if watch is not None:
            watch(done)
    return results


@dataclass(frozen=True, slots=True)
class ContinuationScores:
    """Scores of a continuation, all with one entry per token."""

    logprobs: tuple[float, ...] = ()
    """In nats, given all tokens before."""
    agrees: tuple[bool, ...] = ()
    """Whether the token is the model's most probable one there."""
    widths: tuple[int, ...] = ()
    """Characters that the token spells; a character in several tokens counts at the last of them."""

    @property
    def total(self) -> float:
        """The sum of the log-probabilities."""
        return math.fsum(self.logprobs)


@dataclass(frozen=True, slots=True)
class _Text:
    """Ids of a prompt with its continuation."""

    ids: list[int]
    start: int
    """Position at which the continuation begins."""

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.ids) - self.start


def _text(
    model: Any, tokenizer: Any, template: str, messages: Sequence[Message], continuation: str
) -> _Text | ProviderError:
    try:
        start = len(chat_template.prompt_ids(messages, template, tokenizer))
        whole = [*messages, Message("assistant", continuation)]
        ids = chat_template.encode(whole, template, tokenizer, truncated=True).input_ids
    except DistillError as error:
        return ProviderError("template", str(error))
    if len(ids) > context_tokens(model):
        return ProviderError("context_length", f"{len(ids)} tokens, and the model takes {context_tokens(model)}")
    if not start:
        return ProviderError("empty_prompt", "the prompt has no tokens")
    return _Text(ids, start)


def _scores(model: Any, texts: Sequence[_Text]) -> list[ContinuationScores]:
    """Scores of one right-padded batch; logits are computed only from the shortest prompt's last token on."""
    ids, mask = padded([text.ids for text in texts], on_left=False, device=model.device)
    first = min(text.start for text in texts) - 1
    logits = model(
        input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=ids.shape[1] - first
    ).logits  # B × (T − first) × V, of which position p predicts token first + p + 1
    scores = []
    for row, text in enumerate(texts):
        predicting = slice(text.start - 1 - first, len(text.ids) - 1 - first)
        targets = ids[row, text.start : len(text.ids)]
        logs = torch.log_softmax(logits[row, predicting].float(), dim=-1)
        logprobs = logs.gather(-1, targets[:, None])[:, 0]
        scores.append(
            ContinuationScores(tuple(logprobs.double().tolist()), tuple((logs.argmax(-1) == targets).tolist()))
        )
    return scores
