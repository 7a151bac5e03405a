"""Contender: TRL's SFTTrainer on a random Llama in 4 bits and on the rows that its own packing would leave it."""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
import torch
from peft import LoraConfig
from random_llama import (
    ALPHA,
    LEARNING_RATE,
    RANK,
    Given,
    Row,
    Watch,
    device,
    installed,
    random_model,
    steps_of,
    tell,
    tell_out_of_memory,
    tokenizer,
)
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Train for one epoch."""
    given = Given.read()
    try:
        with tempfile.TemporaryDirectory() as folder:
            _train(given, folder)
    except torch.OutOfMemoryError as error:
        tell_out_of_memory(error)


def _train(given: Given, folder: str) -> None:
    steps = steps_of(given)
    flash = given.best and device().type == "cuda" and installed("flash_attn") is not None
    liger = given.best and device().type == "cuda" and installed("liger_kernel") is not None
    fields = SFTConfig.__dataclass_fields__
    ordered = {"train_sampling_strategy": "sequential"} if "train_sampling_strategy" in fields else {}
    trainer = SFTTrainer(
        model=random_model(given.sizes(), "flash_attention_2" if flash else "sdpa"),
        args=SFTConfig(
            output_dir=folder,
            max_length=None,
            padding_free=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            per_device_train_batch_size=1,
            gradient_accumulation_steps=given.rows,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            use_cpu=device().type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_first_step=True,
            seed=0,
            **({"bf16": False} if device().type == "cpu" else {}),
            **ordered,
            **({"use_liger_kernel": True} if liger else {}),
            **(_recomputing(given.recompute) if given.best else {}),
        ),
        train_dataset=datasets.Dataset.from_list([_packed(row) for step in steps for row in step]),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    seen = Watch(given)
    trainer.add_callback(seen)
    trainer.train()
    recomputes = given.recompute if given.best else "full"
    tell(
        seen,
        steps,
        given,
        said=[],
        pass_tokens=given.length,
        recomputes={"none": "no layer", "selective": "all layers, selectively", "full": "all layers"}[recomputes],
        attention="flash_attention_2" if flash else "torch's, masked",
        liger=liger,
    )


def _recomputing(how: str) -> dict[str, Any]:
    """TRL turns it on by default; the option's name has changed."""
    fields = SFTConfig.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    return {name: how != "none", **({f"{name}_kwargs": {"selective": True}} if how == "selective" else {})}


def _packed(row: Row) -> dict[str, list[int]]:
    return {
        "input_ids": [token for one in row for token in one.input_ids],
        "labels": [label for one in row for label in one.labels],
        "seq_lengths": [len(one.input_ids) for one in row],
    }


if __name__ == "__main__":
    main()
