"""Memory of training by formula, and the layout of a step that fits a GPU; loads no torch.

The terms are those of a step as `kernels` computes it; tests/benchmarks/train_memory.py compares the sum with four
trainings on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from distill.train.options import TrainOptions


Checkpointing = Literal["none", "selective", "full"]

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4: 4 bits, one 8-bit scale for 64 weights, one float32 for 256 scales (Dettmers et al., 2023)."""
STATE_BYTES = {"adamw": 8, "paged_adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 0}
"""Optimizer state per trainable weight; the weight and its gradient take 8 bytes more, in float32."""
LIBRARY_BYTES = {"cpu": 0.6e9, "cuda": 0.7e9}
"""The interpreter, torch, transformers, TRL and bitsandbytes; on a GPU its context and the libraries' workspaces."""
LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
"""Float32 logits that `kernels` computes at once."""
HEAP = {"cpu": 1.5, "cuda": 1.0}
"""Factor on activations: glibc keeps freed blocks below 32 MB, so part of the last pass's memory stays in use."""
MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
"""Tokens in one forward pass unless memory decides: on a CPU, longer passes lose more to attention than they save on
unpacking 4-bit weights."""
SIZES = (16384, 8192, 4096, 2048, 1024, 512)
"""Candidates for the tokens in a forward pass on a GPU: large passes unpack 4-bit weights and launch kernels less
often."""
FULLEST = 0.92
"""Share of a GPU's memory that the formula may fill."""
FEW_LAYERS = 1 / 8
"""Share of the layers that may be recomputed before a smaller pass is tried."""


_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "two_matrices": ("ffn_dim", "n_inner", "ffn_hidden_size"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "shared": ("shared_expert_intermediate_size", "shared_intermediate_size"),
}
"""Names of a size in the configurations of families; the last three are missing in some. `two_matrices` is the width of
a feed-forward of two matrices instead of the usual three."""


def _named(config: Mapping[str, Any], size: str) -> int:
    """A size of a configuration, 0 where it may be missing. Raises `KeyError`."""
    value = next((config[name] for name in _NAMES[size] if config.get(name) is not None), None)
    if value is None and size in ("hidden", "heads", "layers"):
        raise KeyError(size)
    return int(value or 0)


@dataclass(frozen=True, slots=True)
class Shape:
    """Model dimensions that determine memory and work."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_width: int
    tied: bool = True
    """Whether the output head is the embedding."""
    experts: int = 0
    """Feed-forward layers beside each other in a layer, of which `active` see a token; not quantised nor adapted."""
    expert_width: int = 0
    active: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any], *, layers: int | None = None) -> Shape:
        """From a model's config.json; `layers` where it is pruned. Raises `KeyError` for a family not known here.

        Layers of other kinds than attention, such as those of a recurrence, count as attention.
        """
        text = {**config, **config.get("text_config", {})}
        hidden, heads, experts = (_named(text, name) for name in ("hidden", "heads", "experts"))
        width = text.get("intermediate_size") or (_named(text, "two_matrices") or 4 * hidden) * 2 // 3
        shared = _named(text, "shared") or text.get("n_shared_experts", 0) * text.get("moe_intermediate_size", 0)
        return cls(
            hidden=hidden,
            intermediate=shared if experts else width,
            layers=layers or _named(text, "layers"),
            vocabulary=text["vocab_size"],
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_width=text.get("head_dim") or hidden // heads,
            tied=bool(text.get("tie_word_embeddings", True)),
            experts=experts or 0,
            expert_width=(text.get("moe_intermediate_size") or width) if experts else 0,
            active=text.get("num_experts_per_tok") or 2 if experts else 0,
        )

    @property
    def queries(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_width

    def expert_weights(self) -> int:
        """Weights of all experts."""
        return self.layers * self.experts * 3 * self.hidden * self.expert_width

    def linear_weights(self) -> int:
        """Weights in linear layers, experts, embeddings and output head excluded."""
        attention = 2 * self.hidden * (self.queries + self.keys)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def other_weights(self) -> int:
        """Embeddings, an output head that is not tied to them, and norms."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden

    def lora_weights(self, r: int) -> int:
        """Trainable weights with LoRA of rank r on all linear layers."""
        attention = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys)
        forward = 3 * (self.hidden + self.intermediate) if self.intermediate else 0
        return self.layers * r * (attention + forward)


SMOLLM2 = Shape(576, 1536, 30, 49152, heads=9, kv_heads=3, head_width=64)


def shape_in(folder: Path, *, layers: int | None = None) -> Shape | None:
    """The shape of the model in a folder; None without a config.json that gives it."""
    try:
        return Shape.of(json.loads((folder / "config.json").read_text(encoding="utf-8")), layers=layers)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass."""

    tokens: int
    """Padding included."""
    recomputed: int = 0
    """Layers whose activations are computed again in the backward pass."""
    trained_share: float = 1.0
    """Share of the tokens that count towards the loss."""
    device: Literal["cpu", "cuda"] = "cpu"
    width: int = 4
    """Bytes of a number in the dtype of computation."""


def usual_pass(options: TrainOptions, device: Literal["cpu", "cuda"], layers: int) -> Pass:
    """The largest pass by these options on a device, for a model of that many layers."""
    return Pass(
        options.micro_batch_tokens or MICRO_BATCH_TOKENS[device],
        recomputed=layers if options.checkpointing in ("selective", "full") else 0,
        device=device,
        width=4 if options.dtype == "fp32" or (device == "cpu" and options.dtype == "auto") else 2,
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by purpose at the peak of a step."""

    base: float
    """Frozen weights."""
    learning: float
    """Trainable weights, their gradients and the optimizer's state."""
    activations: float
    """Kept from the forward for the backward pass."""
    working: float
    """Temporaries of one layer or of the output head, including one weight unpacked from 4 bits."""
    library: float
    """In use before a model is loaded."""

    @property
    def total(self) -> float:
        """The sum."""
        return float(sum(getattr(self, one.name) for one in fields(self)))


def estimate(shape: Shape, options: TrainOptions, one: Pass, *, method: str | None = None) -> Memory:
    """Peak memory of training in such passes; `method` overrides that of the options."""
    method = method or options.method
    whole, recomputed = _layer_bytes(shape, options, one, method)
    whole_model = shape.linear_weights() + shape.expert_weights() + shape.other_weights()
    learning = whole_model if method == "full" else shape.lora_weights(options.lora.r)
    linear_bytes = {"qlora": NF4_BYTES, "lora": one.width, "full": 0}[method]
    layer_bytes = (shape.layers - one.recomputed) * whole + one.recomputed * recomputed
    return Memory(
        base=shape.linear_weights() * linear_bytes
        + (0 if method == "full" else (shape.other_weights() + shape.expert_weights()) * one.width),
        learning=learning * (8 + STATE_BYTES[options.optimizer]),
        activations=HEAP[one.device] * one.tokens * (layer_bytes + (whole if one.recomputed else 0)),
        working=max(_layer_working(shape, one, method), _head_working(shape, one)),
        library=LIBRARY_BYTES[one.device],
    )


def _layer_bytes(shape: Shape, options: TrainOptions, one: Pass, method: str) -> tuple[float, float]:
    """Bytes that a layer keeps per token: all that the backward pass reads, and when the layer is recomputed.

    Kept are both norms' inputs (their outputs are recomputed), queries, keys, values, attention's output (on a CPU
    twice, as sessions are concatenated), the two outputs of the gated feed-forward, and the adapters' inner values.
    """
    attention = (1 if one.device == "cuda" else 2) * shape.queries
    forward = shape.intermediate + shape.active * shape.expert_width
    outputs = 2 * shape.hidden + shape.queries + 2 * shape.keys + attention + 2 * forward
    inner = 7 * options.lora.r if method != "full" else 6 * shape.hidden + 2 * forward
    small = 4 * (2 + shape.heads)  # in float32: inverse root mean squares, attention's sums
    recomputed = shape.hidden + (0 if options.checkpointing == "full" else attention)
    return one.width * (outputs + inner) + small, one.width * recomputed


def _layer_working(shape: Shape, one: Pass, method: str) -> float:
    """The feed-forward's backward pass: four tensors of its width, three of the hidden size, an unpacked weight."""
    forward = shape.intermediate + shape.active * shape.expert_width
    rows = one.tokens * (4 * forward + 3 * shape.hidden)
    return one.width * (rows + (shape.hidden * shape.intermediate if method == "qlora" else 0))


def _head_working(shape: Shape, one: Pass) -> float:
    """Some rows of logits, as computed and in float32, and hidden states with their gradient of trained tokens."""
    tile = min(LOGIT_BYTES[one.device], 4 * shape.vocabulary * one.tokens * one.trained_share)
    return tile * (1 + one.width / 4) + 3 * one.tokens * shape.hidden * one.width


@dataclass(frozen=True, slots=True)
class Fit:
    """Layout of a step's passes."""

    tokens: int
    """Most tokens in a forward pass."""
    checkpointing: Checkpointing = "none"
    layers: int | None = None
    """Layers whose activations are recomputed; all when None."""


def fit(
    base: Path,
    kept_layers: Sequence[int] | None,
    options: TrainOptions,
    *,
    longest: int,
    width: int,
    room: float | None,
) -> Fit:
    """The layout that the options set; otherwise, by formula, the largest pass that fits `room` bytes of a GPU.

    `longest` are the tokens of the longest session, `width` the bytes of a number in the dtype of computation; `room`
    is None on a CPU, where nothing is recomputed.
    """
    default = options.micro_batch_tokens or MICRO_BATCH_TOKENS["cpu" if room is None else "cuda"]
    if options.checkpointing != "auto":
        return Fit(default, options.checkpointing)
    if room is None:
        return Fit(default)
    shape = shape_in(base, layers=len(kept_layers) if kept_layers is not None else None)
    if shape is None:
        return Fit(default, "selective")
    sizes = [*(size for size in SIZES if size > longest), longest]
    if options.micro_batch_tokens is not None:
        sizes = [max(options.micro_batch_tokens, longest)]
    for tokens in sizes:
        layers = _fewest_recomputed(shape, options, Pass(tokens, device="cuda", width=width), room)
        if layers <= FEW_LAYERS * shape.layers:
            break
    return Fit(tokens, "selective" if layers else "none", layers)


def _fewest_recomputed(shape: Shape, options: TrainOptions, one: Pass, room: float) -> int:
    """Fewest layers to recompute so that a pass fits; all where it does not fit."""
    passes = (replace(one, recomputed=count) for count in range(shape.layers))
    fitting = (each.recomputed for each in passes if estimate(shape, options, each).total <= FULLEST * room)
    return next(fitting, shape.layers)
