"""Adds to an exported folder the fields of transformers 4, which mlx-lm and older vLLM read as well."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.core.files import read_json, write_json

_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "modernbert-decoder": {"rope_theta": "global_rope_theta", "local_theta": "local_rope_theta"},
}
"""Names in transformers 4.57 that differ from the usual ones, by `model_type`."""
_LOCAL = "rope_local_base_freq"
"""Usual name of the rotary base of layers with a sliding window."""
_SCALING = {"phi3": {"rope_type": "type", "short_factor": "short_factor", "long_factor": "long_factor"}}
"""Names in `rope_scaling` where transformers 4.57 allows no others."""
_MACHINE = ("_name_or_path", "_model_name_or_path", "name_or_path", "is_local", "local_files_only", "backend")
"""Fields about the machine or the library that wrote the file."""


def rewrite_config(path: Path, dtype: str) -> bool:
    """Add the older fields to a config.json that transformers 5 wrote, and say that its weights are stored in `dtype`.

    Returns whether older readers get the same rotary embedding.
    """
    settings = read_json(path)
    write_json(path, _rewritten(settings, dtype))
    return all(_older_rope(part) is not None for part in _parts(settings))


def _is_part(value: Any) -> bool:
    """Whether a field is a configuration itself, such as a vision model's `text_config`."""
    return isinstance(value, dict) and "model_type" in value


def _parts(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The configuration and all in it."""
    return [settings, *(part for value in settings.values() if _is_part(value) for part in _parts(value))]


def _rewritten(settings: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    result = {
        key: _rewritten(value, dtype) if _is_part(value) else value
        for key, value in settings.items()
        if key not in _MACHINE
    }
    older = {**_older_counts(settings), **(_older_rope(settings) or {})}
    return {**result, "dtype": dtype, "torch_dtype": dtype, **older}


def _older_counts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The number of experts by its other name, which Qwen's families have in transformers 4."""
    from transformers import CONFIG_MAPPING

    kind = str(settings.get("model_type"))
    names = CONFIG_MAPPING[kind].attribute_map if kind in CONFIG_MAPPING else {}
    return {older: settings[now] for older, now in names.items() if "experts" in older and now in settings}


def _older_rope(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rope_theta`, `rope_scaling` and what else says the same as `rope_parameters`; `None` where nothing does.

    It is tried: the configuration's own class must make the same `rope_parameters` of them.
    """
    parameters = settings.get("rope_parameters")
    if not parameters:
        return {}
    names = _NAMES.get(str(settings.get("model_type")), {})
    whole = dict(parameters.get("full_attention") or parameters)
    older = {names.get(key, key): whole.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in whole}
    if local := parameters.get("sliding_attention"):
        older[names.get("local_theta", _LOCAL)] = local["rope_theta"]
    fields = _SCALING.get(str(settings.get("model_type")))
    if fields is not None and whole["rope_type"] != "default":
        whole = {name: whole[key] for key, name in fields.items()}
    older["rope_scaling"] = None if whole == {"rope_type": "default"} else whole
    return older if _rope_parameters({**settings, "rope_parameters": None, **older}) == parameters else None


def _rope_parameters(settings: Mapping[str, Any]) -> Any:
    """What transformers makes of a configuration, whose `rope_scaling` may still say `type`."""
    from transformers import CONFIG_MAPPING

    given = {key: copy.deepcopy(value) for key, value in settings.items() if value is not None}
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        parameters = CONFIG_MAPPING[given.pop("model_type")](**given).rope_parameters
        return {key: value for key, value in parameters.items() if key != "type"}
    return None


def rewrite_tokenizer_config(path: Path, tokenizer: Any) -> None:
    """Name the class and the further special tokens as transformers 4 does, which transformers 5 reads as well."""
    settings = {key: value for key, value in read_json(path).items() if key not in _MACHINE}
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if (path.parent / "tokenizer.json").is_file():
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # takes tokenizer.json as it stands
    settings["model_input_names"] = list(tokenizer.model_input_names)  # which in transformers 4 has token_type_ids
    settings["clean_up_tokenization_spaces"] = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    write_json(path, settings)
