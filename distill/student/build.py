"""Builds TRL's trainer as we want it: our loss, float32 adapters, our layout, nothing sent or printed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from distill import chat
from distill.student import models
from distill.student.layout import MICRO_BATCH_TOKENS, lay_out
from distill.student.options import TrainOptions

FUSED_HEAD_TOKENS = 2048
"""Answer tokens in one forward pass above which TRL's chunked output head is used, for memory's sake."""
SCALED_HEADS = (
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"
)  # fmt: skip
"""Settings of architectures that do more after the output head than a softmax."""


class Trainer(SFTTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer without its model cards and telemetry, and with an output head that skips prompts on a CPU."""

    tokens_seen = 0

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: the export does, with the teacher's name."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The summed cross entropy of the trained tokens by `num_items_in_batch`, their number in the whole step.

        TRL's own scores every position on a CPU, prompts too, and computes an entropy for its log; doing without was
        measured to save a quarter of the time of a step.
        """
        self.tokens_seen += inputs["input_ids"].numel()
        trained = inputs["labels"][:, 1:] != chat.IGNORED
        if not _is_plain(model, int(trained.sum())):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")[:, 1:][trained]
        causal = model.get_base_model()
        hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1][trained]
        total = cross_entropy(causal.get_output_embeddings()(hidden).float(), labels, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else labels.numel())


def _is_plain(model: Any, trained: int) -> bool:
    config = model.get_base_model().config
    return model.device.type == "cpu" and trained <= FUSED_HEAD_TOKENS and not any(
        getattr(config, name, None) for name in SCALED_HEADS
    )  # fmt: skip


def build(
    base: Path,
    kept: list[int] | None,
    tokenizer: Any,
    examples: Sequence[chat.Example],
    *,
    options: TrainOptions,
    seed: int,
    output: Path,
) -> Trainer:
    """A trainer that is ready to train: the base in 4 bits or whole, an adapter in float32, our layout of the examples.

    `kept` are the layers that the student keeps, all when None; `output` is where checkpoints go.
    """
    device = models.default_device()
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = models.load_causal(base, layers=kept, quantise=options.method == "qlora", dtype=dtype, device=device)
    model.config.use_cache = False
    trainer = Trainer(
        model=model,
        args=_arguments(examples, device, bf16, options=options, seed=seed, output=output),
        train_dataset=datasets.Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in examples]),
        processing_class=copy.deepcopy(tokenizer),  # TRL may set its pad token
        peft_config=LoraConfig(
            r=options.lora.r,
            lora_alpha=options.lora.alpha,
            lora_dropout=options.lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    _train_in_float32(trainer.model)
    return trainer


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


def _arguments(
    examples: Sequence[chat.Example],
    device: torch.device,
    bf16: bool,
    *,
    options: TrainOptions,
    seed: int,
    output: Path,
) -> Any:
    lengths = [len(example.input_ids) for example in examples]
    micro = MICRO_BATCH_TOKENS[device.type]
    layout = lay_out(lengths, epochs=options.epochs, batch_tokens=options.batch_tokens, micro=micro)
    arguments = SFTConfig(
        output_dir=str(output),
        max_length=layout.pack,
        packing=True,
        packing_strategy="bfd",
        eval_packing=False,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=layout.accumulation,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,
        optim="adamw_torch_fused",
        max_grad_norm=options.max_grad_norm,
        bf16=bf16,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        **{_checkpointing_name(): False},
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several visible GPUs would make Trainer replicate the model
    return arguments


def _checkpointing_name() -> str:
    """Recomputing activations costs a third of the speed and saves little at this size; its name has changed."""
    fields = SFTConfig.__dataclass_fields__
    return "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
