"""Options of the recipe's `train` section; loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.core.weights import require_base
from distill.errors import RecipeError
from distill.recipe import BaseOptions
from distill.recipe.continued import contradictions, student_settings
from distill.run.students import WITHOUT_EFFECT
from distill.train.objectives.sft import Sft

RESIDUAL = ("pissa", "olora")
"""Initialisations that take the adapter's first product out of the base's weights."""


LEARNING_RATES = {"qlora": 5e-4, "lora": 5e-4, "full": 2e-5}
"""Defaults by method. Full fine-tuning uses a tenth of an adapter's rate and less: 2e-5 is what Alpaca, Vicuna,
WizardLM and Tülu 2 published for 7B."""


class LoraOptions(BaseOptions):
    """The LoRA adapter, by default on every linear layer but the output head."""

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """The adapter's output is scaled by alpha / r, with `rslora` by alpha / √r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that are left out at random."""
    rslora: bool = False
    """Scale by alpha / √r, so that gradients do not shrink with the rank (Kalajdzievski, 2023, arXiv 2312.03732)."""
    dora: bool = False
    """Learn each column's magnitude apart from its direction (Liu et al., 2024, arXiv 2402.09353); slower, and often
    better at a small rank."""
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """Initialisation of the adapter's matrices. `default` and `gaussian` change nothing at first. `pissa` begins with
    the weights' principal directions (Meng et al., 2024, arXiv 2404.02948), `olora` with an orthonormal basis of them
    (2406.01775), both taken out of the base's weights and therefore for `lora` only; what is saved is a plain adapter
    of twice the rank for the original base."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers that get an adapter, such as [q_proj, v_proj]; by default all but the output head."""


Watched = Literal["nll", "stop_rate", "length_ratio"]
"""Metric on held-out rows: `nll`, nats per token of the teacher's answers, lower is better; `stop_rate`, share of
answers that end by themselves, higher is better; `length_ratio`, length by the teacher's, best at 1."""


class EarlyStopping(BaseOptions):
    """When to end training before its last step."""

    watch: Watched = "nll"
    """What must improve: `nll`, nats per token of the teacher's answers; `stop_rate`, share of answers that end by
    themselves; `length_ratio`, length by the teacher's, best at 1."""
    patience: Annotated[int, Field(ge=1)] = 2
    """Evaluations without an improvement after which training ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Smallest difference that counts as an improvement."""


class TrainOptions(BaseOptions):
    """Options of training."""

    method: Literal["qlora", "lora", "full"] = "qlora"
    """`qlora` keeps the base in 4 bits (NF4, double quantisation), `lora` in 16 bits on a GPU and 32 on a CPU, both
    with a trainable adapter; `full` trains all weights, in 32 bits, and computes in 16 where there is a GPU."""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 2
    """Passes over all sessions."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = LEARNING_RATES["qlora"]
    """The highest, reached after the warm-up: when left out, 5e-4 for an adapter and 2e-5 for `full`. 2e-4 is usual for
    an adapter from 7B on."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls to 0 after the warm-up; `constant` stays where it is."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises; of n such steps, the first has 1/(n+1) of the highest."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor"] = "adamw"
    """`adamw_8bit` keeps its two moments in 8 bits, a quarter of their memory: much for `full`, little for an adapter.
    The paged ones move them out of a GPU's memory when it is short."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the weights subtracted per step, times the learning rate."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Norm to which the gradient of a step is clipped."""
    neftune_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Noise on the embeddings of a session of L tokens, at most alpha / √(L x hidden size) each (NEFTune, Jain et al.,
    2023, arXiv 2310.05914, where 5 to 15 make answers longer); 0 is none."""
    lora: LoraOptions = LoraOptions()
    """The adapter of `qlora` and `lora`."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Tokens of the longest session that is trained on; no answer is ever cut, see `over_length`."""
    over_length: Literal["drop", "split", "raise"] = "drop"
    """What happens to longer sessions: `drop` leaves them out and counts them; `split` cuts them before questions into
    parts of whole pairs, each with the system turn in front (with `train_on: last` the last pairs that fit are kept);
    `raise` stops."""
    train_on: Literal["all", "last"] = "all"
    """Which answers of a session of several turns bear on the loss; one of weight 0 never does."""
    lost_system: Literal["refuse", "accept"] = "refuse"
    """Whether to train where `student.template: own` leaves a system turn out of what the student sees."""
    show_masks: Annotated[int, Field(ge=0, le=1000)] = 1
    """Examples that are shown with their trained tokens marked before training; it does not change the result."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens in one optimizer step; by default what makes about 36 steps of the run, at least 128, at most 16,384."""
    batch_rows: Annotated[int, Field(ge=1)] | None = None
    """Sessions in one optimizer step, in place of `batch_tokens`; 128 is usual in the field, for large sets."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens in one forward pass: 512 on a CPU and what memory holds on a GPU when left out; a step takes as many
    passes as it needs. On out-of-memory, it is halved and the step is repeated: the steps stay the same."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """`best_fit` lays sessions end to end in a forward pass, none seeing another; `none` pads them to one length."""
    group_by_length: bool = False
    """Fill each step with sessions of like length: less padding without packing, but steps that are less alike."""
    checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """Which activations are computed again in the backward pass instead of kept: `full` keeps one tensor a layer,
    `selective` attention's output too, which spares its recomputation. `auto` is selective on as few layers as a
    GPU's free memory asks for by formula, none on a CPU, and full on all once one session does not fit otherwise."""
    device: Literal["auto", "mps"] = "auto"
    """`auto` is a CUDA GPU where there is one, else the CPU; `mps`, Apple's GPU, is never taken unasked."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of computation; trainable weights are always kept in 32 bits. `auto` is bf16 on a GPU that
    has it and fp32 elsewhere; bf16 where there is none is an error."""
    kernels: Literal["auto", "off"] = "auto"
    """`auto` replaces forward functions of transformers and PEFT by faster ones that keep less memory, each only after
    a trial in which its outputs and gradients agree with the library's own; `off` replaces none."""
    save_steps: Annotated[int, Field(ge=1)] = 20
    """Steps between two checkpoints; it does not change the result."""
    eval_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps between two evaluations on held-out rows; a quarter of the run when left out, 0 for none."""
    eval_rows: Annotated[int, Field(ge=0)] | None = None
    """Sessions that are evaluated on and not trained on. They are taken out of the kept rows, not out of the test
    split, so that what is chosen by them is still compared on prompts that nothing has seen. 5% (4 to 64) when left
    out; none of fewer than 40."""
    eval_tokens: Annotated[int, Field(ge=1, le=4096)] = 96
    """Most tokens of an answer that is written for an evaluation; eight are written at most."""
    early_stopping: EarlyStopping | None = None
    """End training once held-out rows no longer improve; never when left out."""
    best: Watched | None = None
    """Keep the weights that were best by this, and end with them instead of the last."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get the figures besides train_log.jsonl; each must be installed."""

    def deciding(self) -> dict[str, Any]:
        """The options that decide the student's weights."""
        return self.model_dump(exclude=set(WITHOUT_EFFECT))

    @field_validator("kernels", mode="before")
    @classmethod
    def _off_as_yaml_reads_it(cls, value: Any) -> Any:
        """`--set train.kernels=off` is a boolean in YAML 1.1."""
        return "off" if value is False else value

    @model_validator(mode="before")
    @classmethod
    def _with_usual_rate(cls, values: Any) -> Any:
        method = values.get("method") if isinstance(values, dict) else None
        if isinstance(method, str) and method in LEARNING_RATES:
            return {"learning_rate": LEARNING_RATES[method], **values}
        return values

    @model_validator(mode="after")
    def _agrees(self) -> TrainOptions:
        if self.method == "qlora" and self.lora.init in RESIDUAL:
            raise ValueError(
                f"lora.init {self.lora.init} takes a part out of the base's weights, and in 4 bits the rest would be "
                "rounded to other values than those the saved adapter is read on; use method: lora, or another init"
            )
        if self.batch_tokens is not None and self.batch_rows is not None:
            raise ValueError("batch_tokens and batch_rows both say how large a step is; give one of them")
        if isinstance(self.lora.target_modules, list) and not self.lora.target_modules:
            raise ValueError("lora.target_modules names no layer; leave it out for all linear layers")
        watching = "early_stopping" if self.early_stopping is not None else "best" if self.best is not None else None
        if watching is not None and 0 in (self.eval_steps, self.eval_rows):
            raise ValueError(f"{watching} needs evaluations; give eval_steps and eval_rows above 0, or leave them out")
        return self


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything of a recipe that a training run depends on."""

    model: str
    """Name or path of the base."""
    template: str
    options: TrainOptions
    seed: int
    layers: int | None = None
    """Layers of the base that the student keeps; None for all."""
    prune_by: Literal["uniform", "block"] = "uniform"
    """How those layers are chosen."""
    teachers: Mapping[str, str] = field(default_factory=dict)
    """Models of the teachers on this machine, by name; for objectives that ask them."""
    objective: Sft | None = None
    """What the student learns from; None for cross entropy."""
    start: Path | None = None
    """Folder of the student that training continues: its adapter, or with `full` its weights."""

    def require_start(self) -> None:
        """Raise `RecipeError` where that student is missing, or has become another than these settings continue.

        Raises `ModelError` where an adapter's base has changed.
        """
        if self.start is None:
            return
        prune = {"layers": self.layers, "by": self.prune_by} if self.layers is not None else {}
        student = {"model": self.model, "template": self.template, "prune": prune}
        document = {"student": student, "train": self.options.model_dump()}
        run = self.start.parent
        if faults := contradictions(document, run, student_settings(run)):
            raise RecipeError(faults[0])
        if self.options.method != "full":
            require_base(self.start)
