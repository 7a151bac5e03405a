"""Attention within each session of a packed row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from distill.models.trial import agree, random_rows

BY_SESSION, FLASH = "session_by_session", "session_by_session_flash"
"""Names of the two implementations in a model's configuration, and of their trials."""
_LENGTHS = (96, 64)
"""Tokens of the sessions of a trial."""
_HALF = (torch.float16, torch.bfloat16)


def run_trials(model: Any) -> dict[str, bool]:
    """By implementation, whether it agrees with transformers' `sdpa` under a mask that separates two sessions.

    Empty for a model with more than plain causal attention.
    """
    if not _is_plain(model):
        return {}
    config, device = model.config.get_text_config(), model.device
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    module = SimpleNamespace(num_key_value_groups=heads // kv_heads, is_causal=True)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.dtype
    counts = (heads, kv_heads, kv_heads)
    inputs = random_rows((sum(counts), sum(_LENGTHS), width), dtype, device)[None].split(counts, 1)
    ends = torch.tensor([0, _LENGTHS[0], sum(_LENGTHS)], dtype=torch.int32, device=device)
    session = torch.arange(sum(_LENGTHS), device=device) >= _LENGTHS[0]
    mask = (session[:, None] == session).tril()[None, None]

    def library(*tensors: Tensor) -> Tensor:
        return sdpa_attention_forward(module, *tensors, mask)[0]

    def ours(*tensors: Tensor, has_flash: bool) -> Tensor:
        query, key, value = tensors
        return attend(
            module, query, key, value, None, has_flash=has_flash, cu_seq_lens_q=ends, max_length_q=max(_LENGTHS)
        )[0]

    functions: dict[str, Callable[..., Tensor]] = {BY_SESSION: partial(ours, has_flash=False)}
    if device.type == "cuda" and dtype in _HALF:
        functions[FLASH] = partial(ours, has_flash=True)
    return {name: agree(library, function, inputs) for name, function in functions.items()}


def use(model: Any, passed: Mapping[str, bool]) -> bool:
    """Switch a model, in place, to the fastest implementation that passed its trial; returns whether there is one.

    Padded rows and generation are masked as in transformers.
    """
    name = next((name for name in (FLASH, BY_SESSION) if passed.get(name, False)), None)
    if name is None or not _is_plain(model):
        return False
    AttentionInterface.register(name, partial(attend, has_flash=name == FLASH))
    AttentionMaskInterface.register(name, _mask)
    model.set_attn_implementation(name)
    return True


def unuse(model: Any) -> None:
    """Switch a model, in place, back to transformers' `sdpa`."""
    if model.config.get_text_config()._attn_implementation in (BY_SESSION, FLASH):
        model.set_attn_implementation("sdpa")


def _is_plain(model: Any) -> bool:
    """Whether every layer attends causally to all tokens before, by `sdpa`."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    is_known = config._attn_implementation == "sdpa" and hasattr(config, "num_attention_heads")
    has_window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return is_known and kinds == {"full_attention"} and not has_window


def _mask(*args: Any, **options: Any) -> Tensor | None:
    """None for one row without padding and cache, where `attend` separates the sessions itself."""
    alone = options.get("batch_size") == 1 and options.get("attention_mask") is None
    if alone and options.get("q_length") == options.get("kv_length"):
        return None
    mask: Tensor | None = sdpa_mask(*args, **options)
    return mask


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    has_flash: bool = False,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    position_ids: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention, B × heads × T × width in, B × T × heads × width out.

    `cu_seq_lens_q` are 0 and the ends of the N sessions in a row (N + 1, int32), `max_length_q` the longest one's
    length; without them, sessions begin where `position_ids` (1 × T) restart. A padded or cached batch goes through
    transformers' own `sdpa`.
    """
    ends = cu_seq_lens_q
    if ends is None and attention_mask is None and position_ids is not None and len(query) == 1:
        ends = _ends(position_ids)
    if ends is None or attention_mask is not None or len(query) > 1 or len(ends) == 2:
        whole, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return whole, None
    longest = max_length_q if max_length_q is not None else int(ends.diff().max())
    if has_flash and dropout == 0 and query.dtype in _HALF:
        return flash(query, key, value, ends, longest, scaling), None
    return one_by_one(query, key, value, ends, scaling, dropout), None


def _ends(position_ids: Tensor) -> Tensor | None:
    """Ends of the sessions in a row (N + 1, int32), where `position_ids` (1 × T) restart; None for one session."""
    starts = (position_ids[0].diff() != 1).nonzero().flatten() + 1
    return pad(pad(starts, (1, 0)), (0, 1), value=position_ids.shape[-1]).to(torch.int32) if len(starts) else None


def one_by_one(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scaling: float | None, dropout: float = 0.0
) -> Tensor:
    """Each session by torch's attention; `ends` is N + 1, other shapes as in `attend`."""
    lengths = ends.diff().tolist()
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in parts
    ]
    return torch.cat([part.transpose(1, 2) for part in outputs], dim=1)


def flash(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scaling: float | None) -> Tensor:
    """All sessions in torch's FlashAttention-2 kernel (Dao, 2023; CUDA); shapes as in `one_by_one`."""
    rows = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    results = torch.ops.aten._flash_attention_forward(
        *rows, ends, ends, longest, longest, 0.0, True, False, scale=scaling
    )
    out: Tensor = results[0]
    return out[None]
