"""Memory-saving autograd functions for LoRA linears, norms, MLPs and the loss.

They equal what transformers and PEFT compute, to rounding. Base weights are frozen and get no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear, silu

from distill.train.kernels.targets import TokenTargets
from distill.train.memory import LOGIT_BYTES

Source = tuple[Tensor, Tensor, Tensor]
"""What a norm's output can be recomputed from: input (… × H), inverse root mean squares (… × 1), weight (H)."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A frozen linear layer (I inputs, O outputs) as its base module and the scale of its adapter."""

    base: Any
    """A `torch.nn.Linear`, or bitsandbytes' with an NF4 weight."""
    scale: float

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight, O × I; dequantised on each call."""
        weight: Tensor = self.base.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            return weight.detach().to(dtype)
        from bitsandbytes.functional import dequantize_4bit

        dense: Tensor = dequantize_4bit(weight.detach(), state)
        return dense.to(dtype)

    def apply(self, rows: Tensor) -> Tensor:
        """The layer without its adapter, T × I in, T × O out."""
        y = product(rows, self.weight(rows.dtype))
        return y if self.base.bias is None else y.add_(self.base.bias)


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` of two matrices, M × K and N × K in, M × N out.

    In float32 on a CPU it is oneDNN's: torch's BLAS uses half of the vector width of AMD CPUs. Measured on one Zen 5
    core for 512 × 576 × 1536: 245 GFLOP/s against 108.
    """
    if a.dtype == torch.float32 and a.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return linear(a, b)


def norm(x: Tensor, epsilon: float, weight: Tensor) -> tuple[Tensor, Source]:
    """RMSNorm (Zhang and Sennrich, 2019) of x (B × T × H, weight: H): its output (B × T × H) and its source.

    Only the input is kept; the next layer can recompute the output from the source instead of keeping it.
    """
    inverse = torch.rsqrt(x.detach().float().pow(2).mean(-1, keepdim=True) + epsilon)
    return _Norm.apply(x, inverse, weight), (x.detach(), inverse, weight)


def adapted_linear(x: Tensor, a: Tensor, b: Tensor, layer: Linear, source: Source | None = None) -> Tensor:
    """A linear layer with its LoRA adapter (Hu et al., 2021; a: r × I, b: O × r): … × I in, … × O out.

    It keeps x for the backward pass, or only the `source` of x where there is one.
    """
    y: Tensor = _AdaptedLinear.apply(x, a, b, layer, source)
    return y


def gated_mlp(
    x: Tensor, layers: tuple[Linear, Linear, Linear], adapters: Sequence[Tensor], source: Source | None = None
) -> Tensor:
    """down(silu(gate(x)) · up(x)) (SwiGLU: Shazeer, 2020), … × H in and out; keeps the outputs of gate and up.

    `layers` are gate, up and down; `adapters` are a (r × I) and b (O × r) of each, in this order.
    """
    y: Tensor = _GatedMLP.apply(x, layers, source, *adapters)
    return y


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, targets: TokenTargets | None = None) -> Tensor:
    """Cross entropy in nats (N) of N labels under a frozen output head (V × H) on hidden states (N × H).

    With targets, the losses are theirs.

    Logits exist for a few rows at a time. The gradient is computed in the forward pass, as in Liger-Kernel (Hsu et
    al., 2024), so that logits are neither kept nor computed twice.
    """
    losses: Tensor = _TokenLosses.apply(hidden, weight, labels, targets)
    return losses


# Implementations


def _scaled(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of x (… × H) by its inverse root mean squares (… × 1, float32)."""
    return weight * (x.float() * inverse).to(x.dtype)


class _Norm(Function):  # type: ignore[misc]  # the library has no types
    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, inverse, weight)
        return _scaled(x, inverse, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, inverse, weight = ctx.saved_tensors
        along = (dy * weight).float()
        mean = (along * x).mean(-1, keepdim=True)
        return along.sub_(x * (mean * inverse * inverse)).mul_(inverse).to(x.dtype), None, None


def _rows(x: Tensor) -> Tensor:
    """X as rows (T × width), in autocast's dtype where autocast is on."""
    kind, rows = x.device.type, x.reshape(-1, x.shape[-1])
    return rows.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else rows


def _input(saved: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The input (T × width) from the saved tensors: itself, or its source."""
    x = saved[0] if len(saved) == 1 else _scaled(*saved)
    return x.reshape(-1, x.shape[-1]).to(dtype)


def _as_gradient(dx: Tensor | None, like: tuple[torch.Size, torch.dtype]) -> Tensor | None:
    """A gradient in the shape and dtype `like`."""
    return None if dx is None else dx.view(like[0]).to(like[1])


def _forward(rows: Tensor, a: Tensor, b: Tensor, layer: Linear) -> tuple[Tensor, Tensor]:
    """Output (T × O), and the output of the adapter's first half (T × r)."""
    inner = product(rows, a.to(rows.dtype))
    return layer.apply(rows).addmm_(inner, b.to(rows.dtype).t(), alpha=layer.scale), inner


def _backward(
    dy: Tensor,
    rows: Tensor,
    inner: Tensor,
    a: Tensor,
    b: Tensor,
    layer: Linear,
    *,
    into: Tensor | None,
    needs_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of the input (T × I; added to `into`), a and b."""
    d_inner = product(dy, b.to(dy.dtype).t()).mul_(layer.scale)
    da = product(d_inner.t(), rows.t()).to(a.dtype)
    db = product(dy.t(), inner.t()).mul_(layer.scale).to(b.dtype)
    if not needs_input:
        return None, da, db
    dx = product(dy, layer.weight(dy.dtype).t())
    dx = dx if into is None else into.add_(dx)
    return dx.addmm_(d_inner, a.to(dy.dtype)), da, db


class _AdaptedLinear(Function):  # type: ignore[misc]  # the library has no types
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: Linear, source: Source | None) -> Tensor:
        y, inner = _forward(_rows(x), a, b, layer)
        ctx.layer, ctx.like = layer, (x.shape, x.dtype)
        ctx.save_for_backward(inner, a, b, *(source or (x,)))
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        inner, a, b, *saved = ctx.saved_tensors
        dy, needs_input = dy.reshape(-1, dy.shape[-1]), ctx.needs_input_grad[0]
        dx, da, db = _backward(dy, _input(saved, dy.dtype), inner, a, b, ctx.layer, into=None, needs_input=needs_input)
        return _as_gradient(dx, ctx.like), da, db, None, None


class _GatedMLP(Function):  # type: ignore[misc]  # the library has no types
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layers: tuple[Linear, Linear, Linear], source: Source | None, *adapters: Tensor
    ) -> Tensor:
        (gate, up, down), (ag, bg, au, bu, ad, bd), rows = layers, adapters, _rows(x)
        g, inner_g = _forward(rows, ag, bg, gate)
        u, inner_u = _forward(rows, au, bu, up)
        y, inner_d = _forward(silu(g).mul_(u), ad, bd, down)
        ctx.layers, ctx.like = layers, (x.shape, x.dtype)
        ctx.save_for_backward(g, u, inner_g, inner_u, inner_d, *adapters, *(source or (x,)))
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        g, u, inner_g, inner_u, inner_d, ag, bg, au, bu, ad, bd, *saved = ctx.saved_tensors
        gate, up, down = ctx.layers
        dy, needs_input = dy.reshape(-1, dy.shape[-1]), ctx.needs_input_grad[0]
        gate_output = silu(g)
        inside, dad, dbd = _backward(dy, gate_output * u, inner_d, ad, bd, down, into=None, needs_input=True)
        assert inside is not None
        du = gate_output.mul_(inside)
        dg = torch.ops.aten.silu_backward(inside.mul_(u), g)
        rows = _input(saved, dy.dtype)
        dx, dag, dbg = _backward(dg, rows, inner_g, ag, bg, gate, into=None, needs_input=needs_input)
        dx, dau, dbu = _backward(du, rows, inner_u, au, bu, up, into=dx, needs_input=needs_input)
        return _as_gradient(dx, ctx.like), None, None, dag, dbg, dau, dbu, dad, dbd


def _tile(
    hidden: Tensor, weight: Tensor, labels: Tensor, targets: TokenTargets | None, *, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Losses (n) of n rows, and their gradients (n × H) with respect to the hidden states."""
    logits = torch.log_softmax(product(hidden, weight), -1, dtype=torch.float32)
    if targets is not None:
        losses, by_logit = targets.tile(logits, labels, needs_gradient=needs_gradient)
        return losses, None if by_logit is None else product(by_logit.to(hidden.dtype), weight.t())
    losses = logits.gather(1, labels[:, None])[:, 0].neg()
    if not needs_gradient:
        return losses, None
    logits.exp_().scatter_add_(1, labels[:, None], torch.full((len(labels), 1), -1.0, device=logits.device))
    return losses, product(logits.to(hidden.dtype), weight.t())


class _TokenLosses(Function):  # type: ignore[misc]  # the library has no types
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, targets: TokenTargets | None) -> Tensor:
        ctx.like, hidden = (hidden.shape, hidden.dtype), _rows(hidden)
        weight = weight.detach().to(hidden.dtype)
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        step = max(1, LOGIT_BYTES.get(hidden.device.type, LOGIT_BYTES["cpu"]) // (4 * weight.shape[0]))
        for start in range(0, len(labels), step):
            part = slice(start, start + step)
            those = None if targets is None else targets[part]
            losses[part], d_hidden = _tile(
                hidden[part], weight, labels[part], those, needs_gradient=gradient is not None
            )
            if gradient is not None:
                gradient[part] = d_hidden
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, d_losses: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return _as_gradient(gradient * d_losses[:, None].to(gradient.dtype), ctx.like), None, None, None
