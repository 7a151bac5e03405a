"""Patches a PEFT model to use these kernels, after a numeric trial against its own modules."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from distill.models.chat_template import IGNORED
from distill.train.kernels import attention, autograd

SCALED_HEADS = (
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"
)  # fmt: skip
"""Settings of architectures that do more after the output head than a softmax."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""How far ours may be from a module's own, against its largest output, to be put in its place."""
FEWEST_ROWS = 32
"""Tokens below which PEFT's own forward is used where no gradient is asked for: bitsandbytes generates faster."""


def make_lean(model: Any) -> dict[str, int]:
    """Replace what can be replaced; returns how many modules of each kind compute by our functions.

    Norms and gated feed-forward layers are tried on random input against their own forward first, one of each class.
    Other architectures, DoRA, and weights that learn themselves keep their own. `loss` is 1 where
    `model(…, labels=…, token_losses=True)` gives the loss of each trained token.
    """
    found = {"linear": 0, "mlp": 0, "norm": 0, "attention": 0, "loss": 0}
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    verdicts: dict[tuple[Any, ...], bool] = {}
    for module in causal.modules():
        found["linear"] += _lean_linear(module)
    for module in causal.modules():
        found["norm"] += _lean_norm(module, verdicts)
        found["mlp"] += _lean_mlp(module, verdicts)
    found["attention"] = int(attention.use(causal))
    found["loss"] = int(_lean_loss(causal))
    return found


# Linear layers


def _lean_linear(module: Any) -> bool:
    """A linear layer with a plain LoRA adapter, on a frozen base."""
    if not _is_plain_lora(module):
        return False
    own = module.forward
    module.forward = MethodType(_linear_forward(own), module)
    return True


def _is_plain_lora(module: Any) -> bool:
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
        dropout = self.lora_dropout[self.active_adapters[0]]
        if getattr(dropout, "p", 0.0) and self.training:
            return autograd.frozen_linear(x, layer) + _dropped(dropout(x), a, b, layer)
        return autograd.adapted_linear(x, a, b, layer, getattr(x, "_source", None))

    return forward


def _is_ours(module: Any, x: Tensor) -> bool:
    """Whether the adapter is on and unmerged, and the input large enough to be worth it."""
    plain = not module.disable_adapters and not module.merged and len(module.active_adapters) == 1
    return plain and (torch.is_grad_enabled() or x.numel() // x.shape[-1] >= FEWEST_ROWS)


def _parts(module: Any) -> tuple[Tensor, Tensor, autograd.Linear]:
    (name,) = module.active_adapters
    layer = autograd.Linear(module.base_layer, float(module.scaling[name]))
    return module.lora_A[name].weight, module.lora_B[name].weight, layer


def _dropped(x: Tensor, a: Tensor, b: Tensor, layer: autograd.Linear) -> Tensor:
    """The adapter's output by torch's own functions."""
    inner = torch.nn.functional.linear(x, a.to(x.dtype))
    return torch.nn.functional.linear(inner, b.to(x.dtype)) * layer.scale


# Norms and feed-forward layers


def _lean_norm(module: Any, verdicts: dict[tuple[Any, ...], bool]) -> bool:
    """A norm like Llama's: named so, with a weight that does not learn."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or weight is None or epsilon is None or weight.requires_grad:
        return False
    forward = MethodType(_norm_forward, module)
    if not _agrees(module, forward, weight.shape[0], weight, verdicts):
        return False
    module.forward = forward
    return True


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    y, source = autograd.norm(x, self.variance_epsilon, self.weight)
    if y.requires_grad:
        y._source = source  # for the layers that read it
    return y


def _lean_mlp(module: Any, verdicts: dict[tuple[Any, ...], bool]) -> bool:
    """A feed-forward layer like Llama's, whose three linear layers are ours."""
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not isinstance(getattr(module, "act_fn", None), torch.nn.SiLU) and not _is_silu(getattr(module, "act_fn", None)):
        return False
    if not all(_is_plain_lora(layer) for layer in layers):
        return False
    forward = MethodType(_mlp_forward(module.forward), module)
    gate: Any = layers[0]
    if not _agrees(module, forward, gate.in_features, gate.lora_A[gate.active_adapters[0]].weight, verdicts):
        return False
    module.forward = forward
    return True


def _is_silu(function: Any) -> bool:
    return type(function).__name__ == "SiLUActivation"


def _mlp_forward(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        modules = self.gate_proj, self.up_proj, self.down_proj
        dropped = self.training and any(
            getattr(dropout, "p", 0.0) for module in modules for dropout in module.lora_dropout.values()
        )
        if dropped or not all(_is_ours(module, x) for module in modules):
            return own(x)
        parts = [_parts(module) for module in modules]
        gate, up, down = (layer for *_, layer in parts)
        adapters = [weight for a, b, _ in parts for weight in (a, b)]
        return autograd.gated_mlp(x, (gate, up, down), adapters, getattr(x, "_source", None))

    return forward


def _agrees(
    module: Any, forward: Callable[..., Tensor], width: int, like: Tensor, verdicts: dict[tuple[Any, ...], bool]
) -> bool:
    """Whether ours gives what the module's own gives on random rows; one of each class and width is tried."""
    key = type(module), width
    if key not in verdicts:
        dtype = like.dtype if type(module).__name__.endswith("Norm") else _compute_dtype(module)
        generator = torch.Generator(like.device).manual_seed(0)
        x = torch.randn(FEWEST_ROWS, width, generator=generator, device=like.device).to(dtype)
        with torch.no_grad():
            expected, found = module.forward(x).float(), forward(x).float()
        verdicts[key] = bool((expected - found).abs().max() <= TOLERANCE[dtype] * expected.abs().max())
    return verdicts[key]


def _compute_dtype(module: Any) -> torch.dtype:
    base = module.gate_proj.base_layer
    state = getattr(base.weight, "quant_state", None)
    found: torch.dtype = base.weight.dtype if state is None else state.dtype
    return found


# The loss


def _lean_loss(causal: Any) -> bool:
    """Teach the model's forward to give the losses of the trained tokens, so that wrappers around it see a forward."""
    head = causal.get_output_embeddings()
    scaled = any(getattr(causal.config.get_text_config(), name, None) for name in SCALED_HEADS)
    if scaled or type(head) is not torch.nn.Linear or head.weight.requires_grad or head.bias is not None:
        return False
    own = causal.forward

    def forward(self: Any, *args: Any, token_losses: bool = False, **inputs: Any) -> Any:
        if not token_losses:
            return own(*args, **inputs)
        labels = inputs.pop("labels")[:, 1:]
        hidden = self.base_model(*args, **inputs, use_cache=False).last_hidden_state[:, :-1]
        trained = labels != IGNORED
        return autograd.token_losses(hidden[trained], self.get_output_embeddings().weight, labels[trained])

    causal.forward = MethodType(forward, causal)
    return True
