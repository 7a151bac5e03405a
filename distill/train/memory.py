"""Memory estimates of training by formula, and how to fit a step on a GPU; loads no torch.

The terms are those of a step as `kernels` and `attention` compute it. tests/benchmarks/train_memory.py holds the sum
against what four trainings take on a CPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from distill.train.options import TrainOptions


Method = Literal["qlora", "lora", "full"]
Checkpointing = Literal["none", "selective", "full"]

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4: 4 bits, one 8-bit scale for 64 weights, one float32 for 256 scales (Dettmers et al., 2023)."""
STATE_BYTES = {"adamw": 8, "paged_adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 0}
"""Of a weight that learns, in the optimizer's state."""
LEARNING_BYTES = {optimizer: 8 + state for optimizer, state in STATE_BYTES.items()}
"""Of a weight that learns: itself and its gradient in float32, and the optimizer's state."""
LIBRARY_BYTES = {"cpu": 0.6e9, "cuda": 0.7e9}
"""The interpreter, torch, transformers, TRL and bitsandbytes; on a GPU its context and the libraries' workspaces."""
LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
"""Of float32 logits that exist at a time; `kernels` takes as many rows of the output head at once."""
GPU_HOLES = 0.04
"""Of the activations, what a GPU's allocator takes besides, with segments that grow."""
HEAP_HOLES, LAYERS_OF_HOLES = 1.0, 4
"""Heap fragmentation (glibc, allocations under 32 MB): as much again as the activations of layers that are kept whole,
and, where layers are computed again, what four of them take while they are. Fitted to the peaks of six trainings."""


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

    @classmethod
    def of(cls, config: Mapping[str, Any], *, layers: int | None = None) -> Shape:
        """From a model's config.json; `layers` where it is pruned."""
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=layers or config["num_hidden_layers"],
            vocabulary=config["vocab_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_width=config.get("head_dim") or config["hidden_size"] // heads,
            tied=bool(config.get("tie_word_embeddings", True)),
        )

    @property
    def queries(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_width

    def linear_weights(self) -> int:
        """Weights in linear layers, embeddings and output head excluded."""
        attention = 2 * self.hidden * (self.queries + self.keys)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def other_weights(self) -> int:
        """Embeddings, an output head that is not tied to them, and norms."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden

    def lora_weights(self, r: int) -> int:
        """Weights that learn with LoRA of rank r on all linear layers."""
        attention = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys)
        return self.layers * r * (attention + 3 * (self.hidden + self.intermediate))


SMOLLM2 = Shape(576, 1536, 30, 49152, heads=9, kv_heads=3, head_width=64)
LLAMA_3_8B = Shape(4096, 14336, 32, 128256, heads=32, kv_heads=8, head_width=128, tied=False)


def shape_in(folder: Path, *, layers: int | None = None) -> Shape | None:
    """The shape of the model in a folder; None without a config.json that says it."""
    try:
        return Shape.of(json.loads((folder / "config.json").read_text(encoding="utf-8")), layers=layers)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class Training:
    """Training settings that determine memory."""

    method: Method = "qlora"
    r: int = 16
    tokens: int = 512
    """In one forward pass, padding included."""
    recomputed: int = 0
    """Layers whose activations are computed again in the backward pass."""
    checkpointing: Checkpointing = "selective"
    """What those keep: their input, with `selective` attention's output too."""
    optimizer: str = "adamw"
    device: Literal["cpu", "cuda"] = "cpu"
    width: int = 4
    """Bytes of a number that is computed with."""
    trained_share: float = 1.0
    """Of the tokens, how many bear on the loss."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by purpose at the peak of a step."""

    base: float
    """Weights that do not learn."""
    learning: float
    """What learns, its gradient and the optimizer's state."""
    activations: float
    """Kept from the forward for the backward pass."""
    working: float
    """What one layer, or the output head, needs while it computes, and one weight made from its 4-bit codes."""
    library: float
    """Before a model is there."""

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, one.name) for one in fields(self)))


def estimate(shape: Shape, training: Training) -> Memory:
    """What a training run takes at most."""
    return Memory(
        base=_base(shape, training),
        learning=_learning_weights(shape, training) * LEARNING_BYTES[training.optimizer],
        activations=activation_bytes(shape, training) + _holes(shape, training),
        working=max(_layer_working(shape, training), _head_working(shape, training)),
        library=LIBRARY_BYTES[training.device],
    )


def _learning_weights(shape: Shape, training: Training) -> int:
    if training.method == "full":
        return shape.linear_weights() + shape.other_weights()
    return shape.lora_weights(training.r)


def _base(shape: Shape, training: Training) -> float:
    if training.method == "full":
        return 0.0
    linear = NF4_BYTES if training.method == "qlora" else training.width
    return shape.linear_weights() * linear + shape.other_weights() * training.width


def activation_bytes(shape: Shape, training: Training) -> float:
    """Kept for the backward pass by all layers, and by the one that is computed again."""
    whole, least = layer_bytes_a_token(shape, training)
    again = min(training.recomputed, shape.layers)
    a_token = (shape.layers - again) * whole + again * least + (whole if again else 0)
    return training.tokens * a_token


def _holes(shape: Shape, training: Training) -> float:
    """What the allocator keeps between activations."""
    if training.device == "cuda":
        return GPU_HOLES * activation_bytes(shape, training)
    whole, _ = layer_bytes_a_token(shape, training)
    again = min(training.recomputed, shape.layers)
    kept = HEAP_HOLES * (shape.layers - again) * training.tokens * whole
    return kept + (LAYERS_OF_HOLES * (training.tokens * whole + _layer_working(shape, training)) if again else 0)


def layer_bytes_a_token(shape: Shape, training: Training) -> tuple[float, float]:
    """What a layer keeps of a token: with all that the backward pass reads, and when it is computed again.

    Both norms' inputs (their outputs are made again), queries, keys, values, attention's output (on a CPU once more
    where sessions are joined), the two outputs of the gated feed-forward; the adapters' inner values beside.
    """
    attention = (1 if training.device == "cuda" else 2) * shape.queries
    kept = 2 * shape.hidden + shape.queries + 2 * shape.keys + attention + 2 * shape.intermediate
    inner = 7 * training.r if training.method != "full" else 6 * shape.hidden + 2 * shape.intermediate
    small = 4 * (2 + shape.heads)  # in float32: inverse root mean squares, attention's sums
    least = shape.hidden + (attention if training.checkpointing == "selective" else 0)
    return training.width * (kept + inner) + small, training.width * least


def _layer_working(shape: Shape, training: Training) -> float:
    """The backward pass of a feed-forward: four tensors as wide as it, three as wide as the hidden size, a weight."""
    rows = training.tokens * (4 * shape.intermediate + 3 * shape.hidden)
    weight = shape.hidden * shape.intermediate if training.method == "qlora" else 0
    return training.width * (rows + weight)


def _head_working(shape: Shape, training: Training) -> float:
    """Some rows of logits, computed and in float32, and the hidden states with their gradient, of trained tokens."""
    tile = min(LOGIT_BYTES[training.device], 4 * shape.vocabulary * training.tokens * training.trained_share)
    states = 3 * training.tokens * shape.hidden * training.width
    return tile * (1 + training.width / 4) + states


# The layout of a step on a GPU

SIZES = (16384, 8192, 4096, 2048, 1024, 512)
"""Tokens in a forward pass that are tried."""
FULLEST = 0.92
"""Of a GPU's memory that the formula may fill."""
UNPACKING_TOKENS = 200
"""Tokens whose forward pass takes as long as making all weights from their 4-bit codes: 8B on an H200, 5 ms at 3.5
bytes a weight and 4.8 TB/s, against 15 GFLOP a token at 600 TFLOP/s."""
LAUNCH_SECONDS = 0.3e-3
"""A layer's kernels take this long to be started, however small they are."""
FLOPS_A_SECOND = 4e14


@dataclass(frozen=True, slots=True)
class Layout:
    """How a step is computed."""

    tokens: int
    """Most in a forward pass."""
    recomputed: int
    """Layers computed again, attention left out."""
    bytes: float
    """By formula."""


def lay_out(shape: Shape, training: Training, *, card_bytes: float, longest: int = 1) -> Layout:
    """The fastest layout that a GPU of `card_bytes` holds, for sessions of at most `longest` tokens.

    Large passes spread the unpacking of 4-bit weights and the launching of kernels over more tokens; layers computed
    again cost half as much as they save. When nothing fits, it is the smallest: a pass of one session, every layer
    computed again.
    """
    sizes = [size for size in SIZES if size >= longest] or [longest]
    tried = [_layout(shape, training, size, again) for size in sizes for again in range(shape.layers + 1)]
    fitting = [one for one in tried if one.bytes <= FULLEST * card_bytes]
    if not fitting:
        return _layout(shape, training, max(min(SIZES), longest) if longest > min(SIZES) else longest, shape.layers)
    return min(fitting, key=lambda one: (seconds_a_token(shape, training, one), -one.tokens))


def _layout(shape: Shape, training: Training, tokens: int, again: int) -> Layout:
    changed = {one.name: getattr(training, one.name) for one in fields(training)}
    found = Training(**{**changed, "tokens": tokens, "recomputed": again})
    return Layout(tokens, again, estimate(shape, found).total)


def seconds_a_token(shape: Shape, training: Training, layout: Layout) -> float:
    """Relative times only: two passes, and the share of a third that is computed again."""
    passes = 2 + layout.recomputed / shape.layers
    a_pass = 2 * shape.linear_weights() / FLOPS_A_SECOND
    fixed = shape.layers * LAUNCH_SECONDS + (UNPACKING_TOKENS * a_pass if training.method == "qlora" else 0)
    return passes * (a_pass + fixed / layout.tokens)


def flops_a_token(
    shape: Shape, r: int, *, trained_share: float = 1.0, attended: float = 0.0, recomputed: int = 0
) -> float:
    """Floating-point operations of a (Q)LoRA step by tokens: forward, and backward to inputs and adapters.

    The base's weights take 4 a weight (no gradients of their own), adapters 6; attention 2 matrices forward and 5
    backward over the mean `attended` tokens; computing a layer again adds 2 a weight of it.
    """
    linear = 4 * shape.linear_weights() + 6 * shape.lora_weights(r)
    head = 4 * shape.vocabulary * shape.hidden * trained_share
    attention = 14 * attended * shape.queries * shape.layers
    again = 2 * shape.linear_weights() * recomputed / shape.layers
    return math.fsum([linear, head, attention, again])


MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
"""Tokens in one forward pass where memory does not decide: on a CPU, longer ones lose more to attention than they
save on unpacking 4-bit weights."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How a step's passes are computed so that they fit."""

    tokens: int
    """Most in a forward pass."""
    checkpointing: Checkpointing = "none"
    layers: int | None = None
    """Whose activations are computed again; all when None."""


def fit(
    base: Path,
    kept: Sequence[int] | None,
    options: TrainOptions,
    *,
    longest: int,
    width: int,
    room: float | None,
) -> Fit:
    """The options' own layout where they say it; else the fastest that `room` bytes of a GPU hold by formula.

    `kept` are the layers of the base that the student keeps, `longest` the tokens of the longest session, `width` the
    bytes of a number that is computed with; `room` is None on a CPU, where nothing is computed again.
    """
    default = options.micro_batch_tokens or MICRO_BATCH_TOKENS["cpu" if room is None else "cuda"]
    if options.checkpointing != "auto":
        return Fit(default, options.checkpointing)
    if room is None:
        return Fit(default)
    shape = shape_in(base, layers=len(kept) if kept is not None else None)
    if shape is None:
        return Fit(default, "selective")
    training = Training(options.method, options.lora.r, optimizer=options.optimizer, device="cuda", width=width)
    if options.micro_batch_tokens is not None:
        return _with_tokens(shape, replace(training, tokens=max(options.micro_batch_tokens, longest)), room, default)
    found = lay_out(shape, training, card_bytes=room, longest=longest)
    return _fit(found.tokens, found.recomputed)


def _with_tokens(shape: Shape, training: Training, room: float, tokens: int) -> Fit:
    """As few layers computed again as the room asks for."""
    tried = (replace(training, recomputed=again) for again in range(shape.layers))
    fitting = (one.recomputed for one in tried if estimate(shape, one).total <= FULLEST * room)
    return _fit(tokens, next(fitting, shape.layers))


def _fit(tokens: int, layers: int) -> Fit:
    return Fit(tokens, "selective" if layers else "none", layers)
