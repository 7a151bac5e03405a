"""Contender: our trainer as `build` assembles it, guarded, on a random Llama in 4 bits."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import nullcontext
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
from distill.models.device import compute_dtype, free_bytes
from distill.train.build import assemble
from distill.train.dataset import Examples
from distill.train.kernels import attention
from distill.train.memory import Fit, Training, estimate, fit
from distill.train.packing import PackingPlan
from distill.train.spikes import Quarantine, Spikes

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
    "dtype": "auto",
    "compiled": False,
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
GUARD = {"spike": 8.0, "spike_nats": 1.0, "window": 32}


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
    options: Any = SimpleNamespace(
        **{**OPTIONS, "compiled": given.compiled}, lora=SimpleNamespace(**LORA), guard=SimpleNamespace(**GUARD)
    )
    plan = _plan([len(step) for step in sessions])
    seen, said = Watch(given), list[str]()
    with third_party.quiet(), tempfile.TemporaryDirectory() as folder:
        chosen = _fit(given, Path(folder), options, longest=max(found.lengths()))
        trainer = assemble(
            random_model(given.sizes()),
            tokenizer(),
            found,
            plan,
            chosen,
            options=options,
            seed=0,
            output=Path(folder),
            say=said.append,
            callbacks=[seen],
        )
        trainer.args.save_strategy = "no"
        trainer.guard(
            Quarantine(Path(folder) / "quarantined.jsonl", 0, []),
            Spikes(options.guard),
            tell=lambda step, entries, line: said.append(line),
            saving=lambda step: nullcontext(),
        )
        trainer.train()
    shape, place = given.sizes(), device()
    layers = shape.layers if chosen.layers is None else chosen.layers
    recomputed = 0 if chosen.checkpointing == "none" else layers
    dtype = compute_dtype("auto", place)
    training = Training(
        "qlora",
        RANK,
        tokens=max(map(trainer._largest, plan.steps)),
        recomputed=recomputed,
        device="cuda" if place.type == "cuda" else "cpu",
        width=dtype.itemsize,
        trained_share=sum(one.trained for one in examples) / sum(found.lengths()),
    )
    tell(
        seen,
        steps,
        given,
        said=said,
        pass_tokens=trainer.micro_tokens,
        recomputes=f"{recomputed} of {shape.layers} layers" if recomputed else "no layer",
        all_recomputed=recomputed == shape.layers or any("computed again instead of kept" in line for line in said),
        attention="FlashAttention" if attention.has_flash(place, dtype, shape.head_width) else "torch's, by session",
        lean=trainer.lean,
        formula={name: size / 1e9 for name, size in asdict(estimate(shape, training)).items()},
    )


def _fit(given: Given, folder: Path, options: Any, *, longest: int) -> Fit:
    """How training would lay out its passes on a card with so much memory free."""
    config_of(given.sizes()).save_pretrained(folder)
    free = free_bytes(device())
    room = free if free is None or given.room_gb is None else min(free, given.room_gb * 1e9)
    return fit(folder, None, options, longest=longest, width=compute_dtype("auto", device()).itemsize, room=room)


def _plan(sizes: list[int]) -> PackingPlan:
    """The sessions in their order, so many a step."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return PackingPlan(tuple(tuple(range(at, at + size)) for at, size in zip(starts, sizes, strict=True)), epochs=1)


if __name__ == "__main__":
    main()
