"""The only way to load foreign models and tokenizers: files are checked first, remote code is never run.

A folder that came from elsewhere is trusted for numbers (safetensors, GGUF), a tokenizer, and a chat template in
transformers' sandbox; not for code, pickles, or files outside of it. The checks need the standard library alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.core.extras import install
from distill.core.files import read_json
from distill.core.model_files import _settings, _shown, _values, require_sound
from distill.errors import MissingPackage, ModelError
from distill.models.templates.source import default_of
from distill.models.third_party import first_line, is_bounded, quietly

_OWN_CODE = re.compile(r"trust_remote_code|custom code|not recognize|Unrecognized")
"""In transformers' errors about a model that it does not know."""
_DATA_ONLY = {"local_files_only": True, "trust_remote_code": False}
_MODULES = re.compile(r"target_modules|exclude_modules|layers_pattern|(rank|alpha)_pattern")
"""Settings of an adapter that PEFT may use as regular expressions, which can take exponential time."""
_RANKS = re.compile(r"(r|rank_pattern\..*)\Z")
WEIGHTS_PER_BYTE = 4
"""As many as 2-bit quantisation packs into a byte."""
SPARE_WEIGHTS = 10_000_000
"""Weights that a file may lack, such as those of a pooler."""
MOST_RANK = 4096
"""Far more than any adapter has; PEFT allocates matrices of this rank before it reads a weight."""


# Loading


def load_config(folder: Path) -> Any:
    """The configuration of a model in a folder. Raises `ModelError`."""
    from transformers import AutoConfig

    require_sound(folder)
    with only_data(folder, "configuration"):
        return AutoConfig.from_pretrained(folder, **_DATA_ONLY)


def kind_of(folder: Path) -> str:
    """Name of the class of transformers that loads the model in a folder; models that see images may have their own.

    Raises `ModelError` for one that does not generate text.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = load_config(folder)
    for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in kind._model_mapping:
            return str(kind.__name__)
    raise ModelError(
        f"{folder} is a {config.model_type} model, which does not generate text; give a causal language model"
    )


def load_tokenizer(folder: Path, kind: str = "AutoTokenizer", *, gguf_file: str | None = None) -> Any:
    """The tokenizer in a folder, or in a GGUF file of it, by a class of transformers. Raises `ModelError`."""
    import transformers

    if gguf_file is None:
        require_sound(folder)
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    with only_data(folder, "tokenizer"):
        tokenizer = getattr(transformers, kind).from_pretrained(folder, **_DATA_ONLY, **options)
        tokenizer.encode("a")  # fails here, if its settings have other types
        template = default_of(tokenizer.chat_template)
        if template is not None and not is_bounded(template):
            raise ModelError(f"the chat template in {folder} takes over 1 s or 400 MB to render; mend it")
        return tokenizer


def token_counter(path: Path) -> Callable[[str], int]:
    """Counts the tokens of a text, without special tokens; `path` is a tokenizer.json, or a folder with one.

    Needs neither torch nor transformers. Raises `ModelError`, and `MissingPackage` without tokenizers.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingPackage(f"counting tokens needs tokenizers; type: {install('train')}") from error
    if path.is_dir():
        require_sound(path)
        path = path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{path}: {first_line(error)}; give a folder with a tokenizer.json, or smollm2") from error
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def load_model(folder: Path, kind: str, *, unused: tuple[str, ...] = (), **options: Any) -> Any:
    """The model in a folder, by a class of transformers; from its safetensors, or from `gguf_file` in it.

    Weights whose names begin with one of `unused` may be missing. Raises `ModelError`, also where another weight is
    missing, which transformers would initialise at random.
    """
    import transformers

    if "gguf_file" not in options:
        require_sound(folder)
        _require_no_adapter(folder)
    with only_data(folder, "model"):
        if "gguf_file" not in options:
            _require_modest(folder, getattr(transformers, kind))
        model, report = getattr(transformers, kind).from_pretrained(
            folder, **_DATA_ONLY, use_safetensors=True, output_loading_info=True, **options
        )
        lacking = sorted(name for name in report["missing_keys"] if not name.startswith(unused))
        if lacking:
            count = "one of the weights" if len(lacking) == 1 else f"{len(lacking)} of the weights"
            examples = ", ".join(lacking[:3]) + (" …" if len(lacking) > 3 else "")
            raise ModelError(f"{folder} lacks {count} that its configuration needs ({examples}); copy the model again")
        return model


def _require_modest(folder: Path, kind: Any) -> None:
    """Raise `ModelError` for a configuration with far more weights than the files can hold.

    Transformers would allocate all of them, initialised at random, before it reports that they are missing.
    """
    import torch

    with torch.device("meta"):
        model = kind.from_config(load_config(folder), trust_remote_code=False)
    count = sum(weight.numel() for weight in model.parameters())
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    if count > WEIGHTS_PER_BYTE * size + SPARE_WEIGHTS:
        raise ModelError(f"{folder}/config.json describes {count:,} weights, and the files hold {size:,} bytes of them")


def _require_no_adapter(folder: Path) -> None:
    """Refuse an adapter beside a model: transformers would apply it, and then not report missing weights."""
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter beside a whole model (adapter_config.json); merge it, or move it elsewhere"
        )


def load_adapter(model: Any, folder: Path) -> Any:
    """A model with the LoRA adapter in a folder beside its weights. Raises `ModelError`."""
    from peft import PeftModel

    _require_adapter(folder)
    with warnings.catch_warnings(), only_data(folder, "adapter"):
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT 0.21
        warnings.filterwarnings("error", "Found missing adapter keys")  # PEFT would initialise them and go on
        return PeftModel.from_pretrained(model, folder)


def adapter_config(folder: Path) -> Any:
    """PEFT's configuration of the LoRA adapter in a folder. Raises `ModelError`."""
    from peft import LoraConfig

    _require_adapter(folder)
    with only_data(folder, "adapter"):
        return LoraConfig.from_pretrained(str(folder))


def _require_adapter(folder: Path) -> None:
    """Raise `ModelError` where a folder holds no LoRA adapter, or one that runs or reads anything else."""
    require_sound(folder)
    _require_plain_adapter(folder / "adapter_config.json")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} has no adapter_model.safetensors; pickles, such as adapter_model.bin, are not read")


def _require_plain_adapter(file: Path) -> None:
    """Raise `ModelError` for settings that make PEFT import a module, match patterns or allocate too much memory."""
    settings = _settings(file)
    if (kind := settings.get("peft_type")) != "LORA":
        raise ModelError(f"{file} is of an adapter of type {_shown(kind)}; expected 'LORA'")
    if settings.get("megatron_config"):
        raise ModelError(f"{file} names a module to import (megatron_core), which distill does not do")
    for key, value in _values(settings):
        if _MODULES.match(key) and not re.fullmatch(r"[\w.]*", f"{key}.{value}"):
            raise ModelError(f"{file}: {key} is {_shown(value)}; expected names of modules, without patterns")
        if _RANKS.match(key) and not (type(value) is int and 0 < value <= MOST_RANK):
            raise ModelError(f"{file}: {key} is {_shown(value)}; expected 1 to {MOST_RANK}")


@contextmanager
def only_data(folder: Path, what: str) -> Iterator[None]:
    """Keep the libraries from fetching or running anything, and turn their errors into one line.

    Where one of its own calls leaves `trust_remote_code` open, such as for a part of a model, transformers asks on the
    terminal whether to run the model's code; with a time limit of 0 it does not ask.
    """
    from huggingface_hub import constants
    from transformers import dynamic_module_utils as foreign_code

    before = foreign_code.TIME_OUT_REMOTE_CODE, constants.HF_HUB_OFFLINE
    foreign_code.TIME_OUT_REMOTE_CODE, constants.HF_HUB_OFFLINE = 0, True
    try:
        with quietly():
            yield
    except (ModelError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in tokenizers is no Exception
        raise ModelError(_reason(folder, what, error)) from error
    finally:
        foreign_code.TIME_OUT_REMOTE_CODE, constants.HF_HUB_OFFLINE = before


def _reason(folder: Path, what: str, error: BaseException) -> str:
    reply = str(error)
    if _OWN_CODE.search(reply) and (source := _code_named_in(folder)):
        return (
            f"{folder} needs its own Python code (auto_map in {source}), which distill does not run; "
            "use a model that transformers knows"
        )
    if "the above report" in reply:  # a table of weights whose sizes differ, which transformers has logged
        return f"the model in {folder} cannot be read: its weights are not those that its config.json describes"
    return f"the {what} in {folder} cannot be read: {first_line(error)}"


def _code_named_in(folder: Path) -> str | None:
    """The first file that names Python classes in the folder, for the model or for a part of it."""
    for file in sorted(folder.glob("*config*.json")):
        if any("auto_map" in key.split(".") for key, _ in _values(read_json(file))):
            return file.name
    return None
