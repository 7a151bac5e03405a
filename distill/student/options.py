"""The options of training, as a recipe's `train` section gives them; loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill.recipe import Options


class LoraOptions(Options):
    """The adapter that learns; it sits on every linear layer but the output head."""

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """The adapter's output is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that are left out at random."""


class TrainOptions(Options):
    """How the student is trained."""

    method: Literal["qlora", "lora"] = "qlora"
    """`qlora` keeps the base in 4 bits (NF4, double quantisation), `lora` in 16 bits on a GPU and 32 on a CPU."""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 2
    """How often each session is seen."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-4
    """The highest, reached after the warm-up; it falls along a cosine from there. 2e-4 is usual from 7B on."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    lora: LoraOptions = LoraOptions()
    max_length: Annotated[int, Field(ge=8)] = 512
    """Tokens of the longest session that is trained on; longer ones are left out and counted, never cut."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens in one optimizer step; by default what makes about 36 steps of the run, at least 128, at most 16,384."""
    batch_rows: Annotated[int, Field(ge=1)] | None = None
    """Sessions in one optimizer step, in place of `batch_tokens`; 128 is usual in the field, for large sets."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens in one forward pass, 512 on a CPU and 4,096 on a GPU when left out; a step takes as many passes as
    it needs. Where memory ends, it is halved and the step is done again: the steps stay the same."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """`best_fit` lays sessions end to end in a forward pass, none seeing another; `none` pads them to one length."""
    group_by_length: bool = False
    """Fill each step with sessions of like length: less padding without packing, but steps that are less alike."""
    save_steps: Annotated[int, Field(ge=1)] = 20
    """Steps between two checkpoints; it does not change the result."""
