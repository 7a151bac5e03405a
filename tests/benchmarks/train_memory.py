"""The memory formula of training beside what a step takes, for four shapes, methods and ways of checkpointing."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from distill.models import loading
from distill.train.memory import Memory, Pass, Shape, estimate
from distill.train.options import TrainOptions
from tests.benchmarks.arena import Check, Findings, finish, scratch, start

MOST_APART = 0.2
MB = 2**20


@dataclass(frozen=True, slots=True)
class Case:
    """One training."""

    name: str
    shape: Shape
    options: TrainOptions
    length: int
    """Tokens of a session."""

    @property
    def one(self) -> Pass:
        """A pass of it."""
        recomputed = 0 if self.options.checkpointing == "none" else self.shape.layers
        assert self.options.micro_batch_tokens is not None
        return Pass(self.options.micro_batch_tokens, recomputed=recomputed, trained_share=0.67)


def _options(method: str, r: int, tokens: int, checkpointing: str = "none") -> TrainOptions:
    return TrainOptions.model_validate(
        {
            "method": method,
            "lora": {"r": r},
            "micro_batch_tokens": tokens,
            "checkpointing": checkpointing,
            "batch_tokens": 2 * tokens,
            "epochs": 2,
            "dtype": "fp32",
        }
    )


CASES = (
    Case(
        "135M, qlora, 1,024 tokens",
        Shape(576, 1536, 30, 49152, heads=9, kv_heads=3, head_width=64),
        _options("qlora", 16, 1024),
        256,
    ),
    Case(
        "360M, lora, 512 tokens, selective",
        Shape(960, 2560, 32, 49152, heads=15, kv_heads=5, head_width=64),
        _options("lora", 64, 512, "selective"),
        512,
    ),
    Case(
        "6 layers of 1.1B, qlora, 2,048 tokens",
        Shape(2048, 5632, 6, 32000, heads=32, kv_heads=4, head_width=64, tied=False),
        _options("qlora", 32, 2048),
        512,
    ),
    Case(
        "130M, qlora, 1,024 tokens, all computed again",
        Shape(768, 2048, 12, 32000, heads=12, kv_heads=4, head_width=64),
        _options("qlora", 16, 1024, "full"),
        256,
    ),
)
QUICK = (
    Case(
        "tiny, qlora, 2,048 tokens",
        Shape(256, 768, 8, 49152, heads=4, kv_heads=2, head_width=64),
        _options("qlora", 16, 2048),
        256,
    ),
)


def run(*, quick: bool) -> Findings:
    """Each case in a process of its own; the models are random."""
    findings = Findings()
    for case in QUICK if quick else CASES:
        expected, peak = estimate(case.shape, case.options, case.one), measured(case)
        findings.rows.append(_row(case, expected, peak))
        findings.checks.append(Check(f"{case.name}: apart", abs(expected.total / peak - 1), MOST_APART))
    return findings


def measured(case: Case) -> float:
    """The most bytes that the process has had resident in two steps of two forward and backward passes."""
    with tempfile.TemporaryDirectory(dir=scratch()) as place:
        folder = Path(place) / "model"
        write_model(folder, case.shape)
        asked = ("train_memory", folder, "--length", case.length, "--options", case.options.model_dump_json())
        found = finish(start(*asked, alone=True), timeout_seconds=1_800)
    return float(found["peak_mb"] * MB)


def write_model(folder: Path, shape: Shape) -> None:
    """A random Llama of that shape in 16 bits, with the embedded model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    source = loading.materialise("smollm2")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        tie_word_embeddings=shape.tied,
    )
    LlamaForCausalLM(config).half().save_pretrained(folder)
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "vocab", "merges")):
            shutil.copy(file, folder / file.name)


def _row(case: Case, expected: Memory, peak: float) -> dict[str, object]:
    parts = {name: getattr(expected, name) / MB for name in ("base", "learning", "activations", "working", "library")}
    return {
        "": case.name,
        **parts,
        "formula": expected.total / MB,
        "measured": peak / MB,
        "ratio": expected.total / peak,
    }
