"""Attention over packed sequences, without computing across sessions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "session_by_session"
"""What the implementation is called in a model's configuration."""


def use(model: Any) -> bool:
    """Have a model attend session by session in packed rows, in place; False where it does more than plain attention.

    Padded rows, and those of generation, are masked as ever.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config._attn_implementation != "sdpa" or kinds != {"full_attention"} or _window(config):
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _mask)
    model.set_attn_implementation(NAME)
    return True


def _window(config: Any) -> bool:
    """Whether attention reaches back only so far."""
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)


def _mask(*args: Any, **options: Any) -> Tensor | None:
    """None for one row without padding and cache: `attend` sees to what is causal, and to the sessions in it."""
    alone = options.get("batch_size") == 1 and options.get("attention_mask") is None
    if alone and options.get("q_length") == options.get("kv_length"):
        return None
    found: Tensor | None = sdpa_mask(*args, **options)
    return found


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    position_ids: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention, B × heads × T × width in, B × T × heads × width out.

    `cu_seq_lens_q` are the ends of the sessions in a row, 0 before them (int32), `max_length_q` is the longest one's
    length; where they are missing, positions that begin again say it. A padded or cached batch is transformers' own
    `sdpa`.
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
    if dropout == 0 and has_flash(query.device, query.dtype, query.shape[-1]):
        return flash(query, key, value, ends, longest, scaling), None
    return one_by_one(query, key, value, ends, scaling, dropout), None


def _ends(position_ids: Tensor) -> Tensor | None:
    """Of the sessions in a row, by where positions begin again; None for a single one, or in generation."""
    starts = (position_ids[0].diff() != 1).nonzero().flatten() + 1
    if not len(starts):
        return None
    edge = starts.new_tensor([0]), starts.new_tensor([position_ids.shape[-1]])
    return torch.cat([edge[0], starts, edge[1]]).to(torch.int32)


def one_by_one(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scaling: float | None, dropout: float = 0.0
) -> Tensor:
    """Each session by torch's attention."""
    lengths = ends.diff().tolist()
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    grouped = query.shape[1] != key.shape[1]
    found = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in parts
    ]
    return torch.cat([part.transpose(1, 2) for part in found], dim=1)


def flash(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scaling: float | None) -> Tensor:
    """All sessions in one kernel of FlashAttention-2 (Dao, 2023), which torch brings for CUDA."""
    rows = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    found = torch.ops.aten._flash_attention_forward(
        *rows, ends, ends, longest, longest, 0.0, True, False, scale=scaling
    )
    out: Tensor = found[0]
    return out[None]


@cache
def has_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernel runs here and agrees, forward and backward, with torch's attention a session at a time.

    It is reached by a private name, so it is tried once before it is trusted.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    shape, ends = (1, 4, 160, width), torch.tensor([0, 96, 160], dtype=torch.int32, device=device)
    generator = torch.Generator(device).manual_seed(0)
    given = [torch.randn(shape, device=device, dtype=dtype, generator=generator) for _ in range(3)]
    given[1:] = [tensor[:, :2] for tensor in given[1:]]
    try:
        there = _gradients(lambda q, k, v: flash(q, k, v, ends, 96, None), given)
    except (RuntimeError, TypeError, AttributeError):
        return False
    here = _gradients(lambda q, k, v: one_by_one(q, k, v, ends, None), given)
    return all(torch.allclose(a, b, rtol=0.02, atol=0.02) for a, b in zip(there, here, strict=True))


def _gradients(attention: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        out = attention(*leaves)
        out.float().square().sum().backward()
    return [out.detach(), *[leaf.grad for leaf in leaves if leaf.grad is not None]]
