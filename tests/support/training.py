"""Rows, options and a short call that the tests of training share."""

from __future__ import annotations

import shutil

from distill.train.memory import Shape
from distill.train.options import TrainOptions, TrainSettings
from distill.types import Message, Session

COLOURS = ["red", "blue", "green", "black", "white", "brown"]
SESSIONS = [
    Session(f"s{i}", (Message("user", f"Number {i}?"), Message("assistant", f"{i} is {COLOURS[i % 6]}, I say.")))
    for i in range(24)
]
OPTIONS = TrainOptions.model_validate(
    {"epochs": 2, "learning_rate": 5e-3, "lora": {"r": 8, "dropout": 0.1}, "batch_tokens": 80, "save_steps": 2}
)
"""With dropout and packing, so that a resumed run must restore the random state and the order of the data."""

LLAMA_3_8B = Shape(4096, 14336, 32, 128256, heads=32, kv_heads=8, head_width=128, tied=False)
LLAMA_3_8B_CONFIG = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
"""What its config.json says of its shape."""


def options(**changes) -> TrainOptions:
    """`OPTIONS` without dropout and with the changes; `lora` is merged."""
    values = OPTIONS.model_dump()
    lora = {**values["lora"], "dropout": 0.0, **changes.pop("lora", {})}
    return TrainOptions.model_validate({**values, "lora": lora, **changes})


def run(
    folder,
    model,
    *,
    sessions=SESSIONS,
    options=OPTIONS,
    seed=1,
    layers=3,
    prune_by="uniform",
    progress=None,
    callbacks=(),
    fresh=False,
    teachers=None,
    objective=None,
):
    """Train a student; returns the result and what was said besides the self-check's line."""
    from distill.train import loop

    lines: list[str] = []
    result = loop.train(
        sessions,
        folder,
        TrainSettings(model, "chatml", options, seed, layers, prune_by, teachers or {}, objective),
        fresh=fresh,
        progress=progress,
        say=lines.append,
        callbacks=callbacks,
    )
    lines.remove(result.checks["line"])
    return result, lines


def built(model, *, sessions=SESSIONS, options=OPTIONS, seed=1, earlier=None, objective=None):
    """TRL's trainer as a run builds it, but that its adapter does something from the start."""
    from pathlib import Path

    import torch

    from distill.models import loading, third_party
    from distill.train import build, dataset

    tokenizer = loading.load_tokenizer(Path(model))
    examples = dataset.examples_of(sessions, "chatml", tokenizer, options)
    if objective is not None:
        objective.rows = examples.examples
    with third_party.quiet():
        trainer = build.build(
            Path(model), None, tokenizer, examples, options=options, seed=seed, output=Path(model) / "no", say=print,
            objective=objective,
        )  # fmt: skip
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if earlier is not None:
        trainer.use_kernels(earlier)
    return trainer


def confident(model, folder) -> str:
    """A copy of a model that is sure of itself: random weights alone give every token nearly the same probability."""
    from distill.models import loading

    shutil.copytree(model, folder)
    copied = loading.load_causal(folder)
    copied.get_input_embeddings().weight.data *= 12
    copied.save_pretrained(folder)
    return str(folder)


def losses(folder) -> list[float]:
    """Of the log's steps."""
    from distill.core.jsonl import read_jsonl

    return [row["loss"] for row in read_jsonl(folder / "train_log.jsonl") if "event" not in row]
