"""Builds the trainer: quantized or full base, adapter, TRL arguments.

With a loaded `model` it needs no pydantic, so that training can be measured with its own packages only.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from distill.errors import RecipeError
from distill.models import loading
from distill.models.device import compute_dtype, free_bytes, training_device
from distill.models.quantization import require_plain
from distill.train import packing, row_check, self_check
from distill.train.dataset import Examples
from distill.train.kernels import losses, router
from distill.train.lora import adapter_in, adapter_of, load_weights, train_in_float32
from distill.train.memory import fit
from distill.train.objectives.cross_entropy import plain
from distill.train.packing import PackingPlan
from distill.train.sft_trainer import Noise, recompute
from distill.train.step_guard import GuardedTrainer

if TYPE_CHECKING:
    from distill.train.objectives.cross_entropy import CrossEntropy
    from distill.train.options import TrainOptions


OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def build(
    base: Path,
    layers: list[int] | None,
    tokenizer: Any,
    examples: Examples,
    *,
    options: TrainOptions,
    seed: int,
    output: Path,
    say: Callable[[str], None],
    callbacks: Sequence[TrainerCallback] = (),
    model: Any = None,
    room: float | None = None,
    objective: CrossEntropy | None = None,
    start: Path | None = None,
) -> GuardedTrainer:
    """A trainer ready to train: the base in 4 bits or whole, trainable weights in float32, the step plan.

    `layers` are those of the base that the student keeps; `output` is the folder for checkpoints; `model` is the base
    if it is loaded; `room` is the GPU memory to use in bytes, by default what is free; `objective` has prepared itself
    for the examples, and is by default cross entropy; `start` is the folder of the student that is continued. Raises
    `RecipeError` and `ModelError` for options that this machine or this base does not support.
    """
    objective = objective or plain(examples)
    lengths = objective.lengths()
    device = training_device(options.device)
    dtype = compute_dtype(options.dtype, device)
    _require_optimizer(options.optimizer, device)
    _require_whole_weights(options.method)
    layout = fit(base, layers, options, longest=max(lengths), width=dtype.itemsize, room=room or free_bytes(device))
    if model is None:
        model = _base(base, layers, options, dtype, device, start)
    row_check.require_embeddings(model, examples.ids, examples.examples, tokenizer)
    row_check.require_positions(model, examples.ids, examples.examples)
    balance = router.weight_of(model.config)
    trainer = GuardedTrainer(
        examples,
        plan_of(lengths, options, seed),
        objective,
        micro_tokens=layout.tokens,
        say=say,
        model=model,
        args=_arguments(device, dtype == torch.bfloat16, options=options, seed=seed, output=output),
        train_dataset=_sample(examples),
        processing_class=copy.deepcopy(tokenizer),  # TRL may set its pad token
        peft_config=None if options.method == "full" else _adapter(options, model, start),
        callbacks=list(callbacks),
    )
    _require_suited(trainer, objective)
    recompute(model, layout.checkpointing, layers=layout.layers)
    _configure(trainer, model, options, balance)
    if start is not None and options.method != "full":
        load_weights(trainer.model, start)
    trainer.checked = self_check.check(trainer, examples.ids, tokenizer, method=options.method)
    return trainer


def _require_suited(trainer: GuardedTrainer, objective: CrossEntropy) -> None:
    """Raise `RecipeError` where the launcher divides what the objective needs whole."""
    if not objective.is_sharded and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise RecipeError(
            f"train.objective {objective.kind}: needs a whole output head, and FSDP or DeepSpeed divides it; take "
            "multi_gpu.yaml"
        )
    if not objective.is_parallel and trainer.args.world_size > 1:
        raise RecipeError(f"train.objective {objective.kind}: takes one process; leave `accelerate launch` out")


def _configure(trainer: GuardedTrainer, model: Any, options: TrainOptions, balance: float) -> None:
    """`balance` is the weight of the router's loss in the model's configuration, which TRL has been told to leave."""
    trainer.remove_callback(PrinterCallback)
    trainer.model.create_or_update_model_card = lambda folder: None  # PEFT's, of each checkpoint
    train_in_float32(trainer.model)
    trainer.may_recompute = options.checkpointing == "auto"
    trainer.may_patch = options.kernels == "auto"
    trainer.adapts_all = options.lora.target_modules == "all-linear"
    if options.neftune_alpha:
        trainer.noise = Noise(model, options.neftune_alpha)
    losses.install(model)
    if balance:
        model.config.get_text_config().router_aux_loss_coef = balance
        trainer.router = router.RouterLoss(model, balance)


def _adapter(options: TrainOptions, model: Any, start: Path | None) -> Any:
    return adapter_of(options.lora, model) if start is None else adapter_in(start, options.lora)


def _base(
    base: Path,
    layers: list[int] | None,
    options: TrainOptions,
    dtype: torch.dtype,
    device: torch.device,
    start: Path | None,
) -> Any:
    """The base: in float32 where its own weights change, in training or by the adapter's initialisation.

    In full fine-tuning, the weights of the student that is continued take its place.
    """
    from distill.train.options import RESIDUAL

    whole = options.method == "full" or options.lora.init in RESIDUAL
    if start is not None and options.method == "full":
        base, layers = start, None
    require_plain(base)
    quantise = options.method == "qlora"
    model = loading.load_causal(
        base, layers=layers, quantise=quantise, dtype=torch.float32 if whole else dtype, device=device
    )
    model.config.use_cache = False
    if options.method == "full":
        model.requires_grad_(True)
    return model


def _require_whole_weights(method: str) -> None:
    """Raise `RecipeError` for 4-bit weights that the launcher's configuration would shard."""
    if method == "qlora" and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise RecipeError(
            "train.method: 4-bit weights are not divided among GPUs by FSDP here; give accelerate multi_gpu.yaml, with "
            "which each GPU has them all, or train with method: lora"
        )


def _require_optimizer(optimizer: str, device: torch.device) -> None:
    if optimizer.startswith("paged") and device.type != "cuda":
        raise RecipeError(
            f"train.optimizer: {optimizer} moves its state out of a GPU's memory, and there is none; "
            "take adamw, or adamw_8bit for a smaller state"
        )


def plan_of(lengths: Sequence[int], options: TrainOptions, seed: int) -> PackingPlan:
    """The steps for examples of these lengths, by the options."""
    return packing.plan(
        lengths,
        epochs=options.epochs,
        batch_tokens=options.batch_tokens,
        batch_rows=options.batch_rows,
        seed=seed,
        grouped=options.group_by_length,
    )


def _sample(examples: Examples) -> Any:
    """A table with one row, which TRL inspects; the steps come from the plan."""
    return datasets.Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in examples.examples[:1]])


def _arguments(device: torch.device, bf16: bool, *, options: TrainOptions, seed: int, output: Path) -> Any:
    arguments = SFTConfig(
        output_dir=str(output),
        max_length=None,
        padding_free=options.packing == "best_fit",
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        num_train_epochs=1,
        learning_rate=options.learning_rate,
        lr_scheduler_type=SCHEDULERS[options.scheduler],
        warmup_steps=options.warmup,
        optim=OPTIMIZERS[options.optimizer],
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        bf16=bf16,
        use_cpu=device.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        report_to="none",
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        seed=seed,
        router_aux_loss_coef=0.0,  # `RouterLoss` adds it once a step; TRL would for each pass
        activation_checkpointing=False,  # TRL turns it on by default; `recompute` does it here
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several visible GPUs would make Trainer replicate the model
    return arguments
