"""Contender: TRL's SFTTrainer with its defaults; `--set` changes some, `--same` what must be equal in ours."""

from __future__ import annotations

import json
from importlib.metadata import version

import datasets
import torch
from peft import LoraConfig
from training import ALPHA, LEARNING_RATE, RANK, parser, rows, tell, watch
from transformers import BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Train for one epoch on prompts and completions, of which TRL trains the completions."""
    options = parser()
    options.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of SFTConfig")
    given = options.parse_args()
    found = rows(given)
    changed = {key: json.loads(value) for key, value in (one.split("=", 1) for one in given.set)}
    if given.same:
        order = [name for step in json.loads((given.folder / "order.json").read_text()) for name in step]
        by_name = {row["id"]: row for row in found}
        found = [by_name[name] for name in order]
        changed |= {"bf16": False, "train_sampling_strategy": "sequential", "logging_steps": 1}
    trainer = SFTTrainer(
        model=str(given.folder / "model"),
        args=SFTConfig(
            output_dir=str(given.folder / "trl"),
            per_device_train_batch_size=given.batch,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            use_cpu=True,
            save_strategy="no",
            seed=0,
            **changed,
        ),
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in found]
        ),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    if given.same:
        _train_in_float32(trainer.model)
    seen = watch()
    trainer.add_callback(seen)
    labels = [row["labels"] for row in trainer.train_dataset]
    trainer.train()
    trained = sum(label != -100 for row in labels for label in row)
    tell(seen, trained=trained, tokens=sum(map(len, labels)), version=version("trl"))


def _train_in_float32(model: torch.nn.Module) -> None:
    """The adapter, which TRL casts to bfloat16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


if __name__ == "__main__":
    main()
