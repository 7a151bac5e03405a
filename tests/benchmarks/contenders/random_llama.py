"""A random Llama in 4 bits, rows for it and a stop-watch: what both trainers are given on a GPU, and say of themselves.

Needs torch, transformers and bitsandbytes, and of `distill` what needs no more.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import TrainerCallback

from distill.models.chat_template import IGNORED, Example
from distill.train.memory import Shape
from distill.train.packing import passes

LLAMA_3_8B = Shape(4096, 14336, 32, 128256, heads=32, kv_heads=8, head_width=128, tied=False)
SHAPES = {
    "llama-3-8b": LLAMA_3_8B,
    "tiny": Shape(64, 128, 2, 512, heads=4, kv_heads=2, head_width=16, tied=False),
}
RANK, ALPHA = 64, 64
LEARNING_RATE = 1e-5
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "flash_attn",
    "liger_kernel",
    "triton",
)
ALPACA, SHAREGPT = (4.5, 0.7), (6.9, 0.8)
"""Mean and deviation of the logarithm of a session's tokens: a median of 90 and of 1,000."""
KERNELS = 25
"""That are told of a step that is looked into."""
LEAST_FULL = 0.97
"""Of a step's rows together."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a contender is asked to do."""

    shape: str
    layers: int | None
    steps: int
    warm_up: int
    rows: int
    """Packed rows in an optimizer step."""
    length: int
    """Tokens that a row holds."""
    sessions: str
    """`mixed`: packed, half like Alpaca's and half like ShareGPT's; `whole`: one as long as the row."""
    room_gb: float | None
    """Memory that ours lays its passes out for; the card's when None."""
    profile: bool = False
    """Whether to look into one step more, after those that are measured."""
    best: bool = False
    """TRL: with settings that suit it instead of its own."""
    recompute: str = "full"
    """TRL: `none`, `selective` or `full`."""

    @classmethod
    def read(cls) -> Given:
        """From the command line: one argument, JSON."""
        return cls(**json.loads(sys.argv[1]))

    def sizes(self) -> Shape:
        """Of the model."""
        shape = SHAPES[self.shape]
        return replace(shape, layers=self.layers) if self.layers else shape


# The model


def device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def config_of(shape: Shape) -> Any:
    """Transformers' configuration of that shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        use_cache=False,
    )


def random_model(shape: Shape, attention: str = "sdpa") -> Any:
    """As `models.load_causal(quantise=True)` would leave it, made in place: one 16-bit weight exists at a time."""
    from transformers import AutoModelForCausalLM

    place, dtype = device(), torch.bfloat16 if device().type == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype, attn_implementation=attention)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and child is not head:
                setattr(parent, name, _packed(child.in_features, child.out_features, place, dtype))
    for module in list(model.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.is_meta:
                filled = torch.ones if weight.dim() == 1 else _normal
                made = filled(*weight.shape, device=place, dtype=dtype)
                setattr(module, name, torch.nn.Parameter(made, requires_grad=False))
    with torch.device(place):
        model.base_model.rotary_emb = type(model.base_model.rotary_emb)(config=model.config)
    model.is_loaded_in_4bit = True
    return model.eval()


def _packed(inputs: int, outputs: int, place: torch.device, dtype: torch.dtype) -> Any:
    """A linear layer of random NF4 weights with double quantisation, without bias."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(
        inputs, outputs, bias=False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4", device="meta"
    )
    weight = _normal(outputs, inputs, device=place, dtype=dtype)
    packed = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer)
    layer.weight = packed.to(place)
    layer.support_avx512bf16_for_cpu = False  # see `models.load_causal`
    return layer


def _normal(*shape: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=dtype).mul_(0.02)


def tokenizer() -> Any:
    """What TRL wants to have, with three tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2}, unk_token="<pad>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


# The rows

Row = list[Example]
"""Sessions that lie end to end."""


def steps_of(given: Given) -> list[list[Row]]:
    """The packed rows of each step; a third of each session is its prompt."""
    draw = random.Random(0)
    vocabulary = given.sizes().vocabulary
    return [
        [[_session(draw, length, vocabulary) for length in row] for row in _lengths(draw, given)]
        for _ in range(given.warm_up + given.steps + given.profile)
    ]


def _session(draw: random.Random, length: int, vocabulary: int) -> Example:
    ids = [draw.randrange(3, vocabulary) for _ in range(length)]
    prompt = length // 3
    return Example(ids, [IGNORED] * prompt + ids[prompt:])


def _lengths(draw: random.Random, given: Given) -> list[list[int]]:
    """Of the sessions of each row; drawn until they pack by best fit into as many rows as a step has, nearly full."""
    if given.sessions == "whole":
        return [[given.length]] * given.rows
    while True:
        found = list(_drawn(draw, given.rows * given.length, given.length))
        rows = passes(range(len(found)), found, tokens=given.length, packed=True)
        if len(rows) == given.rows and sum(found) >= LEAST_FULL * given.rows * given.length:
            return [[found[at] for at in row] for row in rows]


def _drawn(draw: random.Random, room: int, longest: int) -> Iterator[int]:
    """Lengths of sessions that together have at most `room` tokens; scaled where rows are not of 4,096."""
    left = room
    while left > (1 - LEAST_FULL) * room:
        length = draw.lognormvariate(*draw.choice((ALPACA, SHAREGPT))) * longest / 4096
        fitting = min(max(round(length), 8), longest, left)
        if fitting >= 8:
            yield fitting
        left -= fitting


# What a contender says


class Watch(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Times each optimizer step, when the GPU is done with it, and notes losses and peaks of memory."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.kernels: list[dict[str, Any]] = []
        """The longest of the step that is looked into."""
        self._profiler: Any = None
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.memory: dict[str, float] = {}
        self._last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.memory["loading"] = _peaks()["allocated"]
        _forget_peaks()
        self._last = _now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.given.profile and state.global_step == self.given.warm_up + self.given.steps:
            self._profiler = torch.profiler.profile()
            self._profiler.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = _now()
        if self._profiler is not None:
            self._profiler.stop()
            self.kernels = _longest(self._profiler.key_averages())
            return
        self.seconds.append(now - self._last)
        self._last = now
        self.memory |= _peaks()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def _longest(events: Any) -> list[dict[str, Any]]:
    """Kernels by their time on the device, their names cut: what one runs in is often in them."""
    kind = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    ordered = sorted(events, key=lambda one: -getattr(one, kind))[:KERNELS]
    return [{"kernel": one.key[:100], "ms": getattr(one, kind) / 1e3, "calls": one.count} for one in ordered]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _forget_peaks() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peaks() -> dict[str, float]:
    """In GB: of tensors, of what torch holds for them, and what is taken of the card; on a CPU the process's."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        held = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return {name: size / 1e9 for name, size in {**held, "card": total - free}.items()}
    status = Path("/proc/self/status").read_text()
    resident = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    return dict.fromkeys(("allocated", "reserved", "card"), resident / 1e9)


def tell(seen: Watch, steps: list[list[Row]], given: Given, **more: Any) -> None:
    """One line of JSON, the last on standard output."""
    counted = slice(given.warm_up, given.warm_up + given.steps)
    measured = [[one for row in step for one in row] for step in steps[counted]]
    tokens, trained = ([count(step) for step in measured] for count in (_tokens, _trained))
    _say(
        seconds=seen.seconds[counted],
        tokens=tokens,
        trained=trained,
        flops_a_token=flops_a_token(
            given.sizes(), RANK, trained_share=sum(trained) / sum(tokens), attended=_attended(measured)
        ),
        losses=seen.losses,
        memory=seen.memory,
        kernels=seen.kernels,
        device=torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
        versions={name: found for name in PACKAGES if (found := installed(name)) is not None},
        **more,
    )


def _tokens(sessions: list[Example]) -> int:
    return sum(len(one.input_ids) for one in sessions)


def _trained(sessions: list[Example]) -> int:
    return sum(one.trained for one in sessions)


def _attended(steps: list[list[Example]]) -> float:
    """Tokens that one looks back on, itself included, on average."""
    lengths = [len(one.input_ids) for step in steps for one in step]
    return sum(length * (length + 1) / 2 for length in lengths) / sum(lengths)


def flops_a_token(
    shape: Shape, r: int, *, trained_share: float = 1.0, attended: float = 0.0, recomputed: int = 0
) -> float:
    """Floating-point operations of a (Q)LoRA step per token: forward, and backward to inputs and adapters.

    The base's weights take 4 per weight (no gradients of their own), adapters 6; attention 2 matrices forward and 5
    backward over the mean `attended` tokens; recomputing a layer adds 2 per weight of it.
    """
    linear = 4 * shape.linear_weights() + 6 * shape.lora_weights(r)
    head = 4 * shape.vocabulary * shape.hidden * trained_share
    attention = 14 * attended * shape.queries * shape.layers
    return linear + head + attention + 2 * shape.linear_weights() * recomputed / shape.layers


def tell_out_of_memory(error: torch.OutOfMemoryError) -> None:
    """The same, where memory was too small."""
    _say(failed=f"out of memory: {str(error).splitlines()[0][:200]}", out_of_memory=True)


def _say(**told: Any) -> None:
    sys.stdout.write(f"\n{json.dumps({**told, 'python': sys.version.split()[0]})}\n")


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return None
