"""Batched sampling in this process; an answer does not depend on the rest of its batch.

Each request has its own random numbers, seeded by (seed, prompt, replica). Batch, order and role have no influence, so
two models that answer the same prompts are compared under common random numbers. Only rounding remains: in another
batch, a float32 model differs only where a draw falls within about 1e-6 of the border between two tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from distill.core.hashing import json_sha256
from distill.engine.providers import ProviderError, Reply
from distill.errors import DistillError
from distill.models import chat_template
from distill.models.alone import can_batch, generate
from distill.models.padding import by_length, context_tokens, padded
from distill.models.token_scores import TokenScore, only_named, scores
from distill.types import Finish, Request, Sampling, Usage

Watch: TypeAlias = Callable[[int, int], None]
"""Called after each step with the numbers of finished answers (an unfinished one counts by the share of its
`max_tokens` that it has) and of sampled tokens."""

DEFAULT_MAX_TOKENS = 512
"""Limit for a request without one; an untrained base may never stop."""
BATCH_TOKENS = 32_768
"""Largest number of tokens, prompts and answers together, in one batch: 1.5 GB of float32 cache for SmolLM2-135M."""
GROWTH = 64
"""Tokens of spare capacity added when the cache is full."""
FIRST_CANDIDATES = 64
"""Size of the first top-k in which a nucleus is sought; sorting all 49,152 tokens costs more than the model."""


def answer(
    model: Any,
    tokenizer: Any,
    template: str,
    requests: Sequence[Request],
    *,
    batch_size: int = 32,
    seed: int = 0,
    watch: Watch | None = None,
) -> list[Reply | ProviderError]:
    """A reply for each request, or the reason why there is none, in order.

    Chat requests are rendered with `template`; a raw `prompt` is used unchanged. Temperature 0 is greedy; an unset
    temperature or top_p is 1. `finish` is `stop` after an end token or a stop string (neither is in the text), `length`
    at `max_tokens` or the end of the context. `usage` counts the end token. A prompt that fills the context or that the
    template cannot render, and logits that are not finite, fail that request only.
    """
    ends = all_end_ids(model, tokenizer, template)
    rows = [GenerationRow(request.sampling, row_random(request, seed), ends, tokenizer) for request in requests]
    for row, request in zip(rows, requests, strict=True):
        fit(row, request, template, context_tokens(model))
    decode(
        model, [row for row in rows if row.error is None], batch_size=batch_size, notify=lambda: _notify(watch, rows)
    )
    return [row.error or row.reply() for row in rows]


def decode(
    model: Any, rows: Sequence[GenerationRow], *, batch_size: int = 32, notify: Callable[[], None] = lambda: None
) -> None:
    """Sample the answers of rows that have a prompt and a limit; `notify` is called after each step."""
    if rows and not can_batch(model, Batch):
        for row in rows:
            generate(model, row)
            notify()
        return
    sizes = [len(row.prompt) + row.limit for row in rows]
    for group in by_length(sizes, rows=batch_size, tokens=BATCH_TOKENS):
        with torch.inference_mode():
            batch = Batch(model, [rows[index] for index in group])
            while batch.rows:
                batch.step()
                notify()


def _notify(watch: Watch | None, rows: Sequence[GenerationRow]) -> None:
    if watch is not None:
        worth = sum(1.0 if row.done else len(row.new) / row.limit for row in rows)
        watch(int(worth), sum(len(row.new) for row in rows))


def all_end_ids(model: Any, tokenizer: Any, template: str) -> frozenset[int]:
    """Ids of the end tokens of the model, of the tokenizer and, where there is one, of the chat template."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
    with suppress(DistillError):  # a base model without a chat template still completes text
        ids += chat_template.end_ids(template, tokenizer)
    return frozenset(id_ for id_ in ids if isinstance(id_, int))


@dataclass(slots=True)
class GenerationRow:
    """One request being generated."""

    sampling: Sampling
    random: Random
    ends: frozenset[int]
    tokenizer: Any
    prompt: list[int] = field(default_factory=list)
    limit: int = 0
    """Largest number of tokens to sample."""
    new: list[int] = field(default_factory=list)
    finish: Finish | None = None
    error: ProviderError | None = None
    top: int | None = None
    """Number of alternatives to score with each token; `None` for no scores."""
    logits: torch.Tensor | None = None
    """Logits of the next token (V), kept where tokens are scored."""
    scores: list[TokenScore] = field(default_factory=list)
    listener: Callable[[int, TokenScore | None], None] | None = None
    """Called with each new token and its score."""

    @property
    def done(self) -> bool:
        """Whether nothing more is sampled."""
        return self.finish is not None or self.error is not None

    def take(self, token: int) -> None:
        """Add a token, and finish where it ends the answer."""
        self.new.append(token)
        if self.logits is not None and self.top is not None:
            self.scores += scores(self.logits[None], [token], self.top)
        if self.listener is not None:
            self.listener(token, self.scores[-1] if self.scores else None)
        if token in self.ends or self._stops():
            self.finish = "stop"
        elif len(self.new) >= self.limit:
            self.finish = "length"

    def _stops(self) -> bool:
        """Whether a stop string has just appeared; each token is at least a byte, so a short tail is enough."""
        if not self.sampling.stop:
            return False
        tail = self._decode(self.new[-max(len(stop.encode()) for stop in self.sampling.stop) - 8 :])
        return any(stop in tail for stop in self.sampling.stop)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def reply(self) -> Reply:
        """The finished answer."""
        assert self.finish is not None
        ids = self.new[:-1] if self.new[-1] in self.ends else self.new
        text = self._decode(ids)
        cuts = [at for stop in self.sampling.stop if (at := text.find(stop)) >= 0]
        return Reply(
            text=text[: min(cuts, default=len(text))],
            finish=self.finish,
            usage=Usage(len(self.prompt), len(self.new)),
        )


def row_random(request: Request, seed: int) -> Random:
    """A generator of random numbers for one request, independent of its batch and of the role."""
    identity = json_sha256([request.messages, request.prompt, request.replica, request.sampling.seed])
    return Random(f"{seed}:{identity}")


def fit(row: GenerationRow, request: Request, template: str, context: int) -> None:
    """Set the row's prompt, unless it has one, and the limit of its answer; or its error."""
    try:
        row.prompt = row.prompt or (
            chat_template.prompt_ids(request.messages, template, row.tokenizer)
            if request.prompt is None
            else chat_template.token_ids(request.prompt, row.tokenizer)
        )
    except DistillError as error:
        row.error = ProviderError("template", str(error))
        return
    row.limit = min(request.sampling.max_tokens or DEFAULT_MAX_TOKENS, context - len(row.prompt))
    if row.limit < 1:
        row.error = ProviderError(
            "context_length", f"the prompt has {len(row.prompt)} tokens and the model takes {context}"
        )
    elif not row.prompt:
        row.error = ProviderError("empty_prompt", "the prompt has no tokens")


class Batch:
    """Rows that are decoded together, left-padded, with their cache.

    Finished rows stay in the batch until they are a quarter of it, since each removal copies the cache.
    """

    def __init__(self, model: Any, rows: list[GenerationRow]) -> None:
        self.rows = rows
        self._model = model
        self._next, self._mask = padded([row.prompt for row in rows], on_left=True, device=model.device)
        self._cache = _growing_cache(model)

    def logits(self) -> torch.Tensor:
        """Logits of the next token, B × V in float32."""
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -self._next.shape[1] :]
        output = self._model(
            input_ids=self._next,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def step(self) -> None:
        """Sample one token for every row; the tokens of finished rows are ignored."""
        self.advance(self.logits())

    def advance(self, logits: torch.Tensor) -> None:
        """Sample from the next token's logits (B × V), and remove finished rows where they are many."""
        tokens = draw_rows(self.rows, logits)
        self._next = torch.tensor(tokens, device=self._mask.device)[:, None]
        going = [index for index, row in enumerate(self.rows) if not row.done]
        if 4 * len(going) <= 3 * len(self.rows):
            self.keep(going)
        self._mask = torch.cat([self._mask, torch.ones_like(self._next)], dim=1)

    def keep(self, going: list[int]) -> None:
        """Keep only the rows at these places."""
        self.rows = [self.rows[index] for index in going]
        indices = torch.tensor(going, dtype=torch.long, device=self._mask.device)
        self._next, self._mask = self._next[indices], self._mask[indices]
        self._cache.batch_select_indices(indices)


def draw_rows(rows: Sequence[GenerationRow], logits: torch.Tensor) -> list[int]:
    """Draw a token for every row from its logits (B × V), and add it where the row is not finished."""
    logits = penalised(only_named(logits, rows[0].tokenizer), rows)
    ends = torch.stack(torch.aminmax(logits, dim=-1))  # in one pass: a NaN is both, an infinity one of them
    is_finite = torch.isfinite(ends).all(0).tolist()
    logits = logits if all(is_finite) else logits.nan_to_num()
    tokens = draw(logits, [row.sampling for row in rows], [row.random.random() for row in rows])
    for row, token, fine in zip(rows, tokens, is_finite, strict=True):
        if not fine and not row.done:
            row.error = not_finite()
        elif not row.done:
            row.take(token)
    return tokens


def not_finite() -> ProviderError:
    """The error for logits with a NaN or an infinity."""
    return ProviderError("not_finite", "the model's logits are not finite: its training diverged")


def _growing_cache(model: Any) -> Any:
    """A cache whose full-attention layers grow in place; layers of other kinds are the library's."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # the library has no types
    """Keys and values in buffers with spare capacity; the library copies them whole for each new token."""

    keys: Any
    values: Any

    def update(self, key_states: Any, value_states: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
        """Append, and return all keys and all values, each B × heads × T × size."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = _appended(self.keys, key_states)
        self.values = _appended(self.values, value_states)
        return self.keys, self.values


def _appended(buffer: Any, new: Any) -> Any:
    """`buffer` with `new` appended along T, both B × heads × T × size: in its spare capacity or in a larger copy."""
    tokens = buffer.shape[-2] if buffer.numel() else 0
    whole = tokens + new.shape[-2]
    if not tokens or whole > buffer.stride(1) // buffer.stride(2):
        grown = new.new_empty((*new.shape[:2], whole + GROWTH, new.shape[-1]))
        grown[:, :, :tokens] = buffer if tokens else grown[:, :, :0]
        buffer = grown
    longer = buffer.as_strided((*new.shape[:2], whole, new.shape[-1]), buffer.stride(), buffer.storage_offset())
    longer[:, :, tokens:] = new
    return longer


def penalised(logits: torch.Tensor, rows: Sequence[GenerationRow]) -> torch.Tensor:
    """Logits (B × V, changed in place) with OpenAI's presence and frequency penalties on tokens drawn before.

    A row that scores its tokens keeps its logits as they were.
    """
    for index, row in enumerate(rows):
        row.logits = None if row.top is None else logits[index].clone()
        presence, frequency = row.sampling.presence_penalty or 0.0, row.sampling.frequency_penalty or 0.0
        if row.new and (presence or frequency):
            tokens, counts = torch.tensor(row.new, device=logits.device).unique(return_counts=True)
            logits[index, tokens] -= presence + frequency * counts
    return logits


def draw(logits: torch.Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> list[int]:
    """One token id per row of `logits` (B × V): argmax at temperature 0, else the inverse CDF at the row's uniform.

    The nucleus is the smallest set of most probable tokens whose probability, after temperature, reaches top_p
    (Holtzman et al., 2020).
    """
    warm = [index for index, sampling in enumerate(samplings) if sampling.temperature != 0]
    tokens: list[int] = [0] * len(samplings) if len(warm) == len(samplings) else logits.argmax(-1).tolist()
    nucleus = [index for index in warm if (samplings[index].top_p or 1.0) < 1]
    for rows in (nucleus, [index for index in warm if index not in nucleus]):
        if rows:
            for index, token in zip(rows, _sampled(logits, samplings, uniforms, rows), strict=True):
                tokens[index] = token
    return tokens


def _sampled(
    logits: torch.Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float], rows: list[int]
) -> list[int]:
    """Token ids of some `rows` of the logits (B × V), of which either all or none have a top_p below 1."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    temperatures = column([samplings[row].temperature or 1.0 for row in rows])
    probabilities = torch.softmax(logits[rows] / temperatures.float(), dim=-1)
    top_p = column([samplings[row].top_p or 1.0 for row in rows])
    if bool((top_p < 1).all()):
        weights, ids = _nucleus(probabilities, top_p)
    else:
        weights, ids = probabilities.double(), None
    cumulative = weights.cumsum(-1)
    target = column([uniforms[row] for row in rows]) * cumulative[:, -1:]
    places = torch.searchsorted(cumulative, target, right=True).clamp(max=weights.shape[-1] - 1)
    ids = places if ids is None else ids.gather(-1, places)
    tokens: list[int] = ids[:, 0].tolist()
    return tokens


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (0 outside the nucleus) and ids of the most probable tokens, in falling order, both B × count.

    `probabilities` is B × V, `top_p` is B × 1.
    """
    vocabulary, count = probabilities.shape[-1], FIRST_CANDIDATES
    while True:
        best, ids = probabilities.topk(min(count, vocabulary), dim=-1)
        cumulative = best.double().cumsum(-1)
        if count >= vocabulary or bool((cumulative[:, -1:] >= top_p).all()):
            return torch.where(cumulative - best < top_p, best.double(), 0.0), ids
        count *= 8
