"""LoRA adapters: initialisation, float32 training, and saving for the unmodified base."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from distill.core.files import read_json, write_json
from distill.errors import ModelError, RecipeError
from distill.models import pretrained
from distill.models.pruning import backbone_of, decoder_of
from distill.models.third_party import first_line

if TYPE_CHECKING:
    from distill.train.options import LoraOptions

_LINEAR = (torch.nn.Linear, Conv1D)


def adapter_of(options: LoraOptions, model: Any) -> LoraConfig:
    """The options as PEFT's configuration for a model. Raises `RecipeError` for targets that cannot be adapted."""
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=options.dora,
        init_lora_weights=True if options.init == "default" else options.init,
        target_modules=options.target_modules,
        task_type="CAUSAL_LM",
    )
    names = _linear_layers(model)
    if options.target_modules == "all-linear":
        unfit = _unfit(model, config, names)
        config.target_modules = [name for name in names if name not in unfit]
    else:
        _require_targets(options.target_modules, names)
    return config


def adapter_in(student: Path, options: LoraOptions) -> LoraConfig:
    """PEFT's configuration of a student's adapter, to continue it: only the dropout is that of the options."""
    config: LoraConfig = pretrained.adapter_config(student)
    config.inference_mode, config.init_lora_weights, config.lora_dropout = False, True, options.dropout
    return config


def load_weights(model: Any, student: Path) -> None:
    """Give a model's adapter the weights of a student's, once nothing casts them any more: in 4 bits, TRL rounds the
    weights of an adapter to bfloat16 when it takes the model over.

    Raises `ModelError` where they are not those of this adapter.
    """
    weights = load_file(student / "adapter_model.safetensors")
    here = get_peft_model_state_dict(model)
    if {name: one.shape for name, one in weights.items()} != {name: one.shape for name, one in here.items()}:
        raise ModelError(f"the adapter in {student} does not fit its base; train that student again")
    set_peft_model_state_dict(model, weights)


def _linear_layers(model: Any) -> list[str]:
    """Full names of all linear layers but the output head."""
    head = model.get_output_embeddings()
    return [name for name, one in model.named_modules() if isinstance(one, _LINEAR) and one is not head]


def _require_targets(targets: Sequence[str], names: Sequence[str]) -> None:
    """Raise `RecipeError` where a target is no linear layer of the model, or is its output head."""
    last = sorted({name.rpartition(".")[2] for name in names})
    if unknown := sorted(set(targets) - set(last)):
        raise RecipeError(
            f"train.lora.target_modules: {unknown[0]} is no linear layer that can have an adapter; this model has "
            f"{', '.join(last)}"
        )


def _unfit(model: Any, config: LoraConfig, names: Sequence[str]) -> set[str]:
    """Linear layers that texts do not pass through, such as those for images, that return more than a tensor, such as
    routers, and that PEFT refuses to adapt.

    PEFT is asked on a copy of the model without weights. It refuses one name at a time, by an error; in a mixture of
    experts it takes some names for the experts', whose adapters keep a copy of all experts for the backward pass.
    """
    decoder = set(decoder_of(model).modules())
    modules = dict(model.named_modules())
    is_part = decoder_of(model) is not backbone_of(model)
    unfit = {name for name in names if (is_part and modules[name] not in decoder) or not _is_function(modules[name])}
    while True:
        with torch.device("meta"):
            empty = type(model)(copy.deepcopy(model.config))
        fit = [name for name in names if name not in unfit]
        trial = replace(copy.deepcopy(config), init_lora_weights=False, target_modules=fit)  # PEFT changes it
        try:
            get_peft_model(empty, trial)
        except ValueError as error:
            refused = {name for name in fit if f"'{name.rpartition('.')[2]}'" in str(error)}
            if not refused:
                raise ModelError(f"a {model.config.model_type} model takes no adapter: {first_line(error)}") from error
        else:
            adapted = {
                name for name, one in empty.named_modules() if isinstance(getattr(one, "base_layer", None), _LINEAR)
            }
            refused = set(fit) - adapted if trial.target_parameters else set()
        if not refused:
            return unfit
        unfit |= refused


def _is_function(layer: Any) -> bool:
    """Whether a layer of a class derived from `Linear` still returns one tensor; tried on a row of zeros."""
    if type(layer).__module__.startswith(("torch.", "bitsandbytes.", "transformers.pytorch_utils")):
        return True
    with torch.no_grad():
        return isinstance(layer(layer.weight.new_zeros(1, layer.weight.shape[1])), torch.Tensor)


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
