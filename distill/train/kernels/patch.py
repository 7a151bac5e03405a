"""Patches a PEFT model to use these kernels, each after a trial against the library's own forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from distill.models.trial import agree, random_rows
from distill.train.kernels import attention, autograd, losses

FEWEST_ROWS = 32
"""Rows below which PEFT's own forward is used when no gradient is needed: bitsandbytes generates faster."""
_SILU = ("SiLU", "SiLUActivation")
_LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module whose forward can be replaced."""

    kind: str
    """`linear`, `norm` or `mlp`."""
    module: Any
    forward: Callable[..., Tensor]
    """Ours, bound to the module."""
    width: int
    """Width of its input."""

    @property
    def trial(self) -> str:
        """Name of its trial: one per class, sizes, dtype and device."""
        outputs = getattr(self.module, "out_features", self.width)
        weight = next(self.module.parameters())
        return f"{self.kind} {type(self.module).__name__} {self.width}x{outputs} {weight.dtype} {weight.device.type}"


def run_trials(model: Any) -> dict[str, bool]:
    """By trial, whether a kernel that the model can use agrees with the library's own forward and backward.

    To be called before `patch`, with the dtypes and autocast of training. Weights and random state stay as they are.
    """
    causal = causal_of(model)
    passed: dict[str, bool] = {}
    for one in _candidates(causal):
        if one.trial not in passed:
            passed[one.trial] = _agrees(one)
    passed |= attention.run_trials(causal)
    if losses.has_linear_head(causal):
        passed[_LOSS] = losses.kernel_agrees(causal)
    return passed


def patch(model: Any, passed: Mapping[str, bool]) -> dict[str, int]:
    """Replace forwards whose kernel passed its trial; returns the number of patched modules by kind.

    Other architectures, DoRA and modules with trainable weights keep their own. `loss` is 1 where the way `kernel` of
    `losses` can be taken.
    """
    causal = causal_of(model)
    counts = {"linear": 0, "mlp": 0, "norm": 0}
    for one in list(_candidates(causal)):
        if passed.get(one.trial, False):
            one.module.forward = one.forward
            counts[one.kind] += 1
    counts["attention"] = int(attention.use(causal, passed))
    counts[_LOSS] = int(losses.has_linear_head(causal) and passed.get(_LOSS, False))
    return counts


def unpatch(model: Any) -> None:
    """Give the modules their own forwards back, and the model its own attention."""
    causal = causal_of(model)
    for one in list(_candidates(causal)):
        vars(one.module).pop("forward", None)
    attention.unuse(causal)


def causal_of(model: Any) -> Any:
    """The causal language model in a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _candidates(causal: Any) -> Iterator[Candidate]:
    for module in causal.modules():
        if _is_plain_lora(module):
            forward = MethodType(_linear_forward(module.forward), module)
            yield Candidate("linear", module, forward, module.in_features)
        elif _is_plain_norm(module):
            yield Candidate("norm", module, MethodType(_norm_forward, module), module.weight.shape[0])
        elif _is_plain_mlp(module):
            forward = MethodType(_mlp_forward(module.forward), module)
            yield Candidate("mlp", module, forward, module.gate_proj.in_features)


def _agrees(one: Candidate) -> bool:
    """Compare both forwards and their gradients (input and adapters) on the same random rows (1 × 32 × width).

    Linear and feed-forward layers are tried behind a norm too, as they recompute its output from its source.
    """
    weights = [weight for weight in one.module.parameters() if weight.requires_grad]
    own, device = one.module.forward, next(one.module.parameters()).device
    x = random_rows((1, FEWEST_ROWS, one.width), _compute_dtype(one.module), device)
    norm = SimpleNamespace(variance_epsilon=1e-6, weight=torch.ones(one.width, dtype=x.dtype, device=device))

    def library(rows: Tensor) -> Tensor:
        return own(rms_norm(rows, (one.width,), norm.weight, norm.variance_epsilon))

    def ours(rows: Tensor) -> Tensor:
        return one.forward(_norm_forward(norm, rows))

    with started_adapters(one.module, 0.1):
        is_right = agree(own, one.forward, [x], weights)
        return is_right and (one.kind == "norm" or agree(library, ours, [x], weights))


@contextmanager
def started_adapters(module: Any, scale: float) -> Iterator[None]:
    """Within the block, random B of that scale (initial zeros hide half of an adapter's arithmetic) and no dropout."""
    training = module.training
    module.eval()
    zeros = [weight for name, weight in module.named_parameters() if "lora_B" in name]
    before = [weight.detach().clone() for weight in zeros]
    for weight in zeros:
        weight.data = random_rows(weight.shape, weight.dtype, weight.device) * scale
    try:
        yield
    finally:
        for weight, value in zip(zeros, before, strict=True):
            weight.data = value
        module.train(training)


def _compute_dtype(module: Any) -> torch.dtype:
    """Dtype of a module's input: that of its weight, or of the dequantised weight."""
    layer = getattr(module, "gate_proj", module)
    weight = getattr(layer, "base_layer", layer).weight
    state = getattr(weight, "quant_state", None)
    dtype: torch.dtype = weight.dtype if state is None else state.dtype
    return dtype


# Linear layers


def _is_plain_lora(module: Any) -> bool:
    """A linear layer with a plain LoRA adapter, on a frozen base."""
    base = getattr(module, "base_layer", None)
    adapters = list(getattr(module, "lora_A", None) or ())
    return (
        isinstance(base, torch.nn.Linear)
        and len(adapters) == 1
        and not module.lora_variant
        and not any(getattr(module, "lora_bias", {}).values())
        and not base.weight.requires_grad
        and (_is_nf4(base) or type(base) is torch.nn.Linear)
    )


def _is_nf4(base: Any) -> bool:
    state = getattr(base.weight, "quant_state", None)
    return state is not None and len(state.shape) == 2


def _linear_forward(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if args or options or not _is_ours(self, x):
            return own(x, *args, **options)
        a, b, layer = _parts(self)
        return autograd.adapted_linear(x, a, b, layer, _source_of(x))

    return forward


def _is_ours(module: Any, x: Tensor) -> bool:
    """Whether the adapter is on, unmerged and without dropout, and x (… × I) large enough to be worth it."""
    plain = not module.disable_adapters and not module.merged and len(module.active_adapters) == 1
    dropped = module.training and any(getattr(dropout, "p", 0) for dropout in module.lora_dropout.values())
    return plain and not dropped and (torch.is_grad_enabled() or x.numel() // x.shape[-1] >= FEWEST_ROWS)


def _parts(module: Any) -> tuple[Tensor, Tensor, autograd.Linear]:
    (name,) = module.active_adapters
    layer = autograd.Linear(module.base_layer, float(module.scaling[name]))
    return module.lora_A[name].weight, module.lora_B[name].weight, layer


# Norms and feed-forward layers


def _is_plain_norm(module: Any) -> bool:
    """An RMSNorm like Llama's, by its name, with a frozen weight."""
    weight = getattr(module, "weight", None)
    is_norm = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    return is_norm and weight is not None and not weight.requires_grad


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    y, source = autograd.norm(x, self.variance_epsilon, self.weight)
    if y.requires_grad:
        y._source = source, y._version  # for the layers whose input it is
    return y


def _source_of(x: Tensor) -> autograd.Source | None:
    """The source of a norm's output, unless the output has been changed in place since."""
    source, version = getattr(x, "_source", (None, None))
    return source if source is not None and x._version == version else None


def _is_plain_mlp(module: Any) -> bool:
    """A feed-forward layer like Llama's, whose three linear layers have plain adapters."""
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return type(getattr(module, "act_fn", None)).__name__ in _SILU and all(map(_is_plain_lora, layers))


def _mlp_forward(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        modules = self.gate_proj, self.up_proj, self.down_proj
        if not all(_is_ours(module, x) for module in modules):
            return own(x)
        parts = [_parts(module) for module in modules]
        gate, up, down = (layer for *_, layer in parts)
        adapters = [weight for a, b, _ in parts for weight in (a, b)]
        return autograd.gated_mlp(x, (gate, up, down), adapters, _source_of(x))

    return forward
