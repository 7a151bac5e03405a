"""Generation of one answer at a time by transformers' `generate`, for models that cannot be batched as here.

`generation` and `continuous_batching` decode left-padded rows over a cache of keys and values. A model that keeps more
than these (states of a recurrence or a convolution), or that takes no mask or positions, gives other answers then. So
each loaded model is tried once: a batched step against `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from distill.core import console
from distill.engine.providers import ProviderError, one_line
from distill.models.third_party import quietly
from distill.models.trial import FAULTS, attempt, is_mistake, is_near
from distill.types import Sampling

if TYPE_CHECKING:
    from distill.models.generation import Batch, GenerationRow

_TRIED: WeakKeyDictionary[Any, dict[type[Batch], bool]] = WeakKeyDictionary()
"""By model and kind of batch, whether the trial agreed."""
_PROMPTS = ([5, 6, 7], [8, 9, 10, 11, 12])
"""Token ids of the prompts of a trial, of two lengths."""
_STEPS = 2
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest difference of the logits, by norm and relative to `generate`'s; another mask or state gives far more."""


def can_batch(model: Any, kind: type[Batch], *, say: console.Say = console.say) -> bool:
    """Whether batched decoding gives what `generate` gives, one row at a time; tried once for each model."""
    tried = _TRIED.setdefault(model, {})
    if kind not in tried:
        with quietly(), torch.no_grad():
            tried[kind] = _agrees(model, kind)
        if not tried[kind]:
            name = model.config.model_type
            say(f"a {name} model cannot be batched here: its answers are generated one by one")
    return tried[kind]


def _agrees(model: Any, kind: type[Batch]) -> bool:
    """Whether a step of two rows, and one more of the second row alone, have the logits of `generate`."""
    from distill.models.generation import GenerationRow

    sampling, tolerance = Sampling(temperature=0.0), _TOLERANCE[model.dtype]
    rows = [GenerationRow(sampling, Random(), frozenset(), None, prompt=ids, limit=_STEPS + 1) for ids in _PROMPTS]
    logits = attempt(_both_logits, kind, model, rows)
    if logits is None:
        return False
    expected, first, second = logits
    is_right = all(is_near(own[0], logits, tolerance=tolerance) for own, logits in zip(expected, first, strict=True))
    is_tie = expected[1][0].argmax() != first[1].argmax()  # what follows has another token before it
    return is_right and (is_tie or is_near(expected[1][1], second[0], tolerance=tolerance))


def _both_logits(
    kind: type[Batch], model: Any, rows: list[GenerationRow]
) -> tuple[list[list[torch.Tensor]], torch.Tensor, torch.Tensor]:
    """Logits by `generate`, those of a step of the batch (B × V), and those of one more of its second row alone."""
    expected = [_greedy_logits(model, ids) for ids in _PROMPTS]
    batch = kind(model, rows)
    first = batch.logits()
    batch.advance(first)
    if len(batch.rows) < len(_PROMPTS):  # logits that are no numbers have ended an answer
        return expected, first, first
    batch.keep([1])
    return expected, first, batch.logits()


def _greedy_logits(model: Any, ids: Sequence[int]) -> list[torch.Tensor]:
    """The logits (V) of each greedy step after the ids, by `generate`."""
    output = _generate(model, ids, _STEPS, output_logits=True, return_dict_in_generate=True)
    return [one[0].float() for one in output.logits]


def generate(model: Any, row: GenerationRow, *, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Generate a row's answer to its end, or until `cancelled` returns True; its draws are those of a batch."""
    from distill.models.generation import draw_rows

    def chosen(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Scores of which the greedy choice is the row's own token."""
        token = draw_rows([row], logits.float())[0]
        return torch.full_like(logits, -torch.inf).index_fill(-1, torch.tensor([token], device=logits.device), 0.0)

    def is_over(ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        return torch.tensor([row.done or cancelled()], device=ids.device)

    choice, end = LogitsProcessorList([chosen]), StoppingCriteriaList([is_over])
    try:
        _generate(model, row.prompt, row.limit, logits_processor=choice, stopping_criteria=end)
    except FAULTS as error:
        if is_mistake(error):
            raise
        row.error = ProviderError("model_failed", one_line(f"the model failed: {type(error).__name__}: {error}"))


def _generate(model: Any, ids: Sequence[int], tokens: int, **options: Any) -> Any:
    """What `generate` returns for a prompt and a number of new tokens, greedily and with a cache."""
    inputs = torch.tensor([list(ids)], device=model.device)
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, use_cache=True, pad_token_id=0)
    with _plain_settings(model), torch.no_grad():
        return model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=settings, **options)


@contextmanager
def _plain_settings(model: Any) -> Iterator[None]:
    """Within the block, without the penalties and end tokens of the model's generation_config.json."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = owner.generation_config
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = before
