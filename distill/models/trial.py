"""Numeric trial of a function against a library's own: outputs and gradients on the same random input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from traceback import walk_tb
from typing import Any, TypeVar

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest difference between two tensors, relative to the library's largest value, by the dtype of the computation."""
FAULTS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Raised by functions of a library that another version has changed, or that a model family does not support."""
_Result = TypeVar("_Result")


def attempt(function: Callable[..., _Result], *args: Any) -> _Result | None:
    """What the function returns; None where a library or a model fails on its arguments."""
    try:
        return function(*args)
    except FAULTS as error:
        if is_mistake(error):
            raise
        return None


def is_mistake(error: Exception) -> bool:
    """Whether one of `FAULTS` says nothing of a model: a programming error of this package, or a lack of memory.

    A programming error is raised in our own code. So are errors of torch's operators, which have no frame of their own,
    but they are of type `RuntimeError`.
    """
    if isinstance(error, RuntimeError):
        return isinstance(error, torch.OutOfMemoryError)
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).startswith(f"{__package__.partition('.')[0]}.")


def agree(
    library: Callable[..., Tensor],
    ours: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor] = (),
) -> bool:
    """Whether both functions give the same output and the same gradients of inputs and weights, within `TOLERANCE`.

    `inputs` and `weights` may have any shape that the functions take. Both functions use the same random numbers; the
    caller's random state is not changed.
    """
    expected = _results(library, inputs, weights)
    results = attempt(_results, ours, inputs, weights)
    if results is None:
        return False
    tolerance = max(TOLERANCE[tensor.dtype] for tensor in (*inputs, expected[0]))
    return all(_is_within(a, b, tolerance) for a, b in zip(expected, results, strict=True))


def is_near(expected: Tensor, result: Tensor, *, tolerance: float) -> bool:
    """Whether the norm of the difference is at most `tolerance` of the expected tensor's norm; False for NaN."""
    expected, result = expected.float(), result.float()
    return bool((expected - result).norm() <= tolerance * expected.norm())


def _is_within(expected: Tensor, result: Tensor, tolerance: float) -> bool:
    if expected.shape != result.shape:
        return False
    return bool((expected.float() - result.float()).abs().max() <= tolerance * expected.float().abs().max())


def _results(function: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """The output, then the gradients of inputs and weights under a fixed gradient of the output."""
    device = inputs[0].device
    devices: list[Any] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(0)
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        output = function(*leaves)
        gradient = torch.linspace(-1, 1, output.numel(), device=device).view_as(output).to(output.dtype)
        return [output.detach(), *torch.autograd.grad(output, [*leaves, *weights], gradient)]


def random_rows(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal numbers of the given shape, the same in every process."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=device).to(dtype)
