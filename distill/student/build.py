"""Builds the trainer that a recipe asks for: the base in 4 bits or whole, its adapter, TRL's arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from distill.student import models
from distill.student.examples import Examples
from distill.student.layout import MICRO_BATCH_TOKENS, Plan, plan
from distill.student.options import TrainOptions
from distill.student.sft import Trainer


def build(
    base: Path,
    kept: list[int] | None,
    tokenizer: Any,
    found: Examples,
    *,
    options: TrainOptions,
    seed: int,
    output: Path,
    say: Callable[[str], None],
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """A trainer that is ready to train: the base in 4 bits or whole, an adapter in float32, the run's plan of steps.

    `kept` are the layers that the student keeps, all when None; `output` is where checkpoints go.
    """
    device = models.default_device()
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = models.load_causal(base, layers=kept, quantise=options.method == "qlora", dtype=dtype, device=device)
    model.config.use_cache = False
    trainer = Trainer(
        found,
        _plan(found.lengths(), options, seed),
        micro_tokens=options.micro_batch_tokens or MICRO_BATCH_TOKENS[device.type],
        say=say,
        model=model,
        args=_arguments(device, bf16, options=options, seed=seed, output=output),
        train_dataset=_sample(found),
        processing_class=copy.deepcopy(tokenizer),  # TRL may set its pad token
        peft_config=_adapter(options),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    _train_in_float32(trainer.model)
    return trainer


def _plan(lengths: Sequence[int], options: TrainOptions, seed: int) -> Plan:
    return plan(
        lengths,
        epochs=options.epochs,
        batch_tokens=options.batch_tokens,
        batch_rows=options.batch_rows,
        seed=seed,
        grouped=options.group_by_length,
    )


def _sample(found: Examples) -> Any:
    """A table with one row, for TRL to look at; the steps come from the plan."""
    return datasets.Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in found.examples[:1]])


def _adapter(options: TrainOptions) -> LoraConfig:
    return LoraConfig(
        r=options.lora.r,
        lora_alpha=options.lora.alpha,
        lora_dropout=options.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _train_in_float32(model: Any) -> None:
    """Undo TRL's cast of the adapter to bfloat16.

    There a quarter and more of the weights do not move in a step at 2e-4, and a resumed run differs from the next step
    on. The second loop is for modules that the adapter has wrapped since `load_causal` saw to it.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


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
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,
        optim="adamw_torch_fused",
        max_grad_norm=options.max_grad_norm,
        bf16=bf16,
        use_cpu=device.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        **{_checkpointing_name(): False},
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several visible GPUs would make Trainer replicate the model
    return arguments


def _checkpointing_name() -> str:
    """Recomputing activations costs a third of the speed and saves little at this size; its name has changed."""
    fields = SFTConfig.__dataclass_fields__
    return "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
