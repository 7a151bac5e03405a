"""Norms and gated activations fused by torch.compile: one pass over GPU memory each.

Each is a few operations a number and many reads and writes of it, and on a GPU those are what it costs: by count, 54 MB
a token of an 8B Llama step by step, 18 MB in one pass each. At 3 TB/s that is 12 µs of about 75 that a token takes. It
has not been measured on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from subprocess import SubprocessError
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import silu

from distill.models.third_party import first_line

Part = TypeVar("Part", bound=Callable[..., Any])

ROWS = (48, 80)
"""Tokens of the two trials. The first compiles for its number, the second for any: packed passes differ in length."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}
"""How far a compiled part may be from the plain one, against its largest number."""
_FAULTS = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, SubprocessError, TypeError)
"""What torch.compile raises where it cannot: without a C compiler or Triton, on an old card, for a fault of its own."""

_plain: dict[str, Callable[..., Any]] = {}
_compiled: dict[tuple[str, str], Callable[..., Any]] = {}
"""By name and kind of device."""


def _part(function: Part) -> Part:
    """One that may be compiled: called as it stands until `fuse` has found that it can be."""
    name = function.__name__
    _plain[name] = function

    @wraps(function)
    def run(first: Tensor, *others: Any) -> Any:
        compiled = _compiled.get((name, first.device.type))
        return function(first, *others) if compiled is None else _called(compiled, [first, *others])

    return run  # type: ignore[return-value]  # `run` takes what `function` does, which its signature cannot say


def _called(compiled: Callable[..., Any], given: list[Any]) -> Any:
    """Always in the same state of torch, for each other one would be compiled for anew, and differ between runs."""
    with torch.no_grad(), torch.autocast(given[0].device.type, enabled=False):
        return compiled(*(one.detach() if isinstance(one, Tensor) else one for one in given))


@_part
def inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """Inverse root mean squares of x, … × H, in float32: … × 1."""
    return torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)


@_part
def scaled(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of x by its inverse root mean squares."""
    return weight * (x.float() * inverse).to(x.dtype)


@_part
def scaled_gradient(dy: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """Of RMSNorm, in x."""
    along = (dy * weight).float()
    mean = (along * x).mean(-1, keepdim=True)
    return along.sub_(x * (mean * inverse * inverse)).mul_(inverse).to(x.dtype)


@_part
def gated(g: Tensor, u: Tensor) -> Tensor:
    """silu(g) · u."""
    return silu(g).mul_(u)


@_part
def gates(g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """silu(g), and silu(g) · u."""
    opened = silu(g)
    return opened, opened * u


@_part
def gate_gradients(d_gated: Tensor, opened: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of silu(g) · u with respect to g and u; overwrites `d_gated` and `opened`, which is silu(g)."""
    du = opened.mul_(d_gated)
    return torch.ops.aten.silu_backward(d_gated.mul_(u), g), du


def fuse(device: torch.device, dtype: torch.dtype, *, hidden: int, intermediate: int) -> str | None:
    """Compile all parts for such a device; returns why not, where that fails or gives other numbers than plain steps.

    They are tried at the widths of a model. A fixed trial makes the same kernels each time, so that a run repeats bit
    for bit; a run that is compiled differs from one that is not by rounding.
    """
    made: dict[tuple[str, str], Callable[..., Any]] = {}
    try:
        for name, function in _plain.items():
            made[name, device.type] = compiled = torch.compile(function)
            for rows in ROWS:
                given = _example(name, (1, rows, hidden), (rows, intermediate), device, dtype)
                if not _agree(function(*_copies(given)), _called(compiled, _copies(given)), TOLERANCE[dtype]):
                    return f"{name} gives other numbers when it is compiled"
    except _FAULTS as error:
        return first_line(error)
    _compiled.update(made)
    return None


def unfuse() -> None:
    """Compute step by step again: what an earlier training of this process had compiled is another run's choice."""
    _compiled.clear()


def _example(
    name: str, normed: tuple[int, ...], wide: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> list[Any]:
    generator = torch.Generator(device).manual_seed(0)

    def drawn(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    x, weight = drawn(normed), drawn(normed[-1:])
    inverse = _plain["inverse_rms"](x, 1e-5)
    d_gated, g, u = (drawn(wide) for _ in range(3))
    return {
        "inverse_rms": [x, 1e-5],
        "scaled": [x, inverse, weight],
        "scaled_gradient": [drawn(normed), x, inverse, weight],
        "gated": [g, u],
        "gates": [g, u],
        "gate_gradients": [d_gated, silu(g), g, u],
    }[name]


def _copies(given: list[Any]) -> list[Any]:
    return [one.clone() if isinstance(one, Tensor) else one for one in given]


def _agree(plain: Any, compiled: Any, tolerance: float) -> bool:
    pairs = zip(*((one if isinstance(one, tuple) else (one,)) for one in (plain, compiled)), strict=True)
    return all(
        a.dtype == b.dtype and bool((a.float() - b.float()).abs().max() <= tolerance * a.float().abs().max())
        for a, b in pairs
    )
