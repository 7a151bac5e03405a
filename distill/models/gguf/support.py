"""Which models have a GGUF form, by their configuration and tokenizer.json alone, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.core.files import read_json
from distill.errors import ModelError
from distill.models.gguf.vocabulary import pre_of

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GPTNeoXForCausalLM": "gptneox",
}
"""llama.cpp's names of the supported architectures."""


def require_supported(settings: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    """Raise `ModelError` for a model that cannot be written, of its config.json and tokenizer.json."""
    name = str((settings.get("architectures") or ["?"])[0])
    if name not in ARCHITECTURES:
        raise ModelError(
            f"no GGUF can be written of a {name}; there is {', '.join(ARCHITECTURES)}: use --to merged, and llama.cpp's"
            " own converter on that folder"
        )
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in ("default", "llama3"):
        raise ModelError(f'no GGUF can be written of rotary scaling "{scaling}"; use --to merged')
    pre_of(tokenizer)


def obstacle(folder: Path) -> str | None:
    """Why the model in a folder has no GGUF form; `None` where it has one."""
    settings = read_json(folder / "config.json")
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        require_supported(settings if isinstance(settings, dict) else {}, tokenizer)
    except FileNotFoundError:
        return "it has no tokenizer.json"
    except ModelError as error:
        return str(error)
    return None
