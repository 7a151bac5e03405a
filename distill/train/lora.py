"""LoRA adapters: initialisation, float32 training, and saving for the unmodified base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from distill.core.files import read_json, write_json
from distill.errors import RecipeError

if TYPE_CHECKING:
    from distill.train.options import LoraOptions


def adapter_of(options: LoraOptions) -> LoraConfig:
    """The options as PEFT's configuration."""
    return LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=options.dora,
        init_lora_weights=True if options.init == "default" else options.init,
        target_modules=options.target_modules,
        task_type="CAUSAL_LM",
    )


def require_targets(model: Any, options: LoraOptions) -> None:
    """Raise `RecipeError` where a name in `target_modules` is no linear layer of the model, or is its output head."""
    if options.target_modules == "all-linear":
        return
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    }
    names = sorted(name for name, module in linear.items() if module is not head)
    if unknown := sorted(set(options.target_modules) - set(names)):
        raise RecipeError(
            f"train.lora.target_modules: {unknown[0]} is no linear layer that can have an adapter; this model has "
            f"{', '.join(names)}"
        )


def decoder_of(causal: Any) -> Any:
    """The part of a causal language model that a text passes through: of one that sees images, its text part."""
    config = causal.config
    return causal.base_model if config.get_text_config() is config else causal.get_decoder()


def train_in_float32(model: Any) -> None:
    """Undo TRL's cast of the adapter to bfloat16.

    In bfloat16, at a learning rate of 2e-4, a quarter or more of the weights do not change in a step, and a resumed run
    diverges from the next step on. The second loop is for modules that the adapter has wrapped since `load_causal`.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def initial_adapter(model: Any, options: LoraOptions) -> dict[str, Any] | None:
    """A copy of the initial adapter where it was subtracted from the base's weights (`RESIDUAL`); else None."""
    from distill.train.options import RESIDUAL

    if options.init not in RESIDUAL:
        return None
    return {name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(model).items()}


def save_adapter(model: Any, folder: Path, *, base: str, first: dict[str, Any] | None, state: Any = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json, which refer to `base`.

    With `first`, from `initial_adapter`, the product BA, initially B₀A₀, is written as BA − B₀A₀ with twice the rank,
    so that it fits the original base. `state` are the gathered weights of a sharded model.
    """
    settings = model.peft_config["default"]
    settings.base_model_name_or_path = base  # not its path on this machine
    if not isinstance(settings.target_modules, str):
        settings.target_modules = sorted(settings.target_modules)  # a set, whose order varies
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
    if first is not None:
        _subtract(folder, first)


def _subtract(folder: Path, first: dict[str, Any]) -> None:
    file = folder / "adapter_model.safetensors"
    trained = load_file(file)
    for name, tensor in trained.items():
        if "lora_A" in name:
            trained[name] = torch.cat([tensor, first[name]])
        elif "lora_B" in name:
            trained[name] = torch.cat([tensor, -first[name]], dim=1)
    save_file(trained, file, metadata={"format": "pt"})
    settings = read_json(folder / "adapter_config.json")
    factor = 2**0.5 if settings["use_rslora"] else 2  # keeps the scale
    changes = {"r": 2 * settings["r"], "lora_alpha": factor * settings["lora_alpha"], "init_lora_weights": True}
    write_json(folder / "adapter_config.json", {**settings, **changes})
