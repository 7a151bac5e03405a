"""Contender: our trainer as `build` assembles it, guarded, on a random Llama in 4 bits."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from random_llama import (
    ALPHA,
    LEARNING_RATE,
    RANK,
    Given,
    Watch,
    config_of,
    device,
    random_model,
    steps_of,
    tell,
    tell_out_of_memory,
    tokenizer,
)

from distill.models import third_party
from distill.models.device import compute_dtype
from distill.train.build import build
from distill.train.dataset import Examples
from distill.train.kernels import attention
from distill.train.memory import Pass, estimate
from distill.train.packing import PackingPlan

OPTIONS: dict[str, Any] = {
    "method": "qlora",
    "learning_rate": LEARNING_RATE,
    "scheduler": "constant",
    "warmup": 0.0,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "neftune_alpha": 0.0,
    "micro_batch_tokens": None,
    "packing": "best_fit",
    "checkpointing": "auto",
    "device": "auto",
    "dtype": "auto",
    "kernels": "auto",
    "epochs": 2,
    "batch_tokens": None,
    "batch_rows": None,
    "group_by_length": False,
    "save_steps": 20,
}
"""Of the recipe's section train, as TrainOptions has them; that needs pydantic, which may be missing here."""
LORA = {
    "r": RANK,
    "alpha": ALPHA,
    "dropout": 0.0,
    "rslora": False,
    "dora": False,
    "init": "default",
    "target_modules": "all-linear",
}


def _largest(trainer: Any, rows: Sequence[int]) -> int:
    """Tokens of a step's largest pass, padding included."""
    passes = [[trainer._tokens([row]) for row in group] for group in trainer._passes(rows) if group]
    return max(sum(lengths) if trainer.padding_free else len(lengths) * max(lengths) for lengths in passes)


def main() -> None:
    """Train for one epoch."""
    given = Given.read()
    try:
        _train(given)
    except torch.OutOfMemoryError as error:
        tell_out_of_memory(error)


def _train(given: Given) -> None:
    steps = steps_of(given)
    sessions = [[one for row in step for one in row] for step in steps]
    examples = [one for step in sessions for one in step]
    found = Examples([str(number) for number in range(len(examples))], examples, Counter())
    options: Any = SimpleNamespace(**OPTIONS, lora=SimpleNamespace(**LORA))
    seen, said, shape = Watch(given), list[str](), given.sizes()
    with third_party.quiet(), tempfile.TemporaryDirectory() as folder:
        config_of(shape).save_pretrained(folder)
        trainer = build(
            Path(folder),
            None,
            tokenizer(),
            found,
            options=options,
            seed=0,
            output=Path(folder),
            say=said.append,
            callbacks=[seen],
            model=random_model(shape),
            room=None if given.room_gb is None else given.room_gb * 1e9,
        )
        trainer.plan = _plan([len(step) for step in sessions])
        trainer.args.save_strategy = "no"
        trainer.guard(Path(folder) / "quarantined.jsonl", [], [], lambda row: said.append(row["line"]))
        trainer.train()
    place, dtype = device(), compute_dtype("auto", device())
    recomputed = sum(getattr(one, "gradient_checkpointing", False) for one in trainer.model.modules())
    one = Pass(
        max(_largest(trainer, rows) for rows in trainer.plan.steps),
        recomputed=recomputed,
        trained_share=sum(one.trained for one in examples) / sum(found.lengths()),
        device="cuda" if place.type == "cuda" else "cpu",
        width=dtype.itemsize,
    )
    implementation = trainer.model.config._attn_implementation
    tell(
        seen,
        steps,
        given,
        said=said,
        pass_tokens=trainer.micro_tokens,
        recomputes=f"{recomputed} of {shape.layers} layers" if recomputed else "no layer",
        all_recomputed=recomputed == shape.layers or any("computed again instead of kept" in line for line in said),
        attention="FlashAttention" if implementation == attention.FLASH else "torch's, by session",
        lean=trainer.kernels,
        formula={name: size / 1e9 for name, size in asdict(estimate(shape, options, one)).items()},
    )


def _plan(sizes: list[int]) -> PackingPlan:
    """The sessions in their order, so many a step."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return PackingPlan(tuple(tuple(range(at, at + size)) for at, size in zip(starts, sizes, strict=True)), epochs=1)


if __name__ == "__main__":
    main()
