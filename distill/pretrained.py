"""The one door to models of others: what will be read is checked first, and no code of theirs is run.

A folder that came from elsewhere is trusted for numbers (safetensors, GGUF), a tokenizer, and a chat template in
transformers' sandbox; not for code, pickles, or files outside of it. The checks need the standard library alone.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from distill.errors import ModelError
from distill.quiet import first_line, quietly

WEIGHTS, INDEX = ".safetensors", ".safetensors.index.json"
"""How the names of files with weights end, and of those that say which weight lies in which file."""

CONFIGS = (
    "config.json",
    "config.*.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
)
"""Files of settings that a loader acts upon."""

VOCABULARIES = ("*tekken*.json", "tokenizer.model.*", "bpe.codes", "emoji.json", "byte_maps.json")
"""What a tokenizer without a tokenizer.json is made from, beside the names that fingerprints have always covered."""

MOST_LAYERS = 1000
"""Far more than any model has; as many as a configuration says are built before the first weight is looked for."""

_LAYERS = re.compile(r"(num|n)_(\w+_)?layers?|(en|de)coder_layers")
_OWN_CODE = re.compile(r"trust_remote_code|custom code|not recognize|Unrecognized")
"""What transformers says where a model is none of its own."""
_DATA_ONLY = {"local_files_only": True, "trust_remote_code": False}


# Checks


def require_sound(folder: Path) -> None:
    """Raise `ModelError` where a loader that opens the folder would read anything that is not data in the folder.

    Names of further files must lead into the folder, and name weights as safetensors. Links may lead to other files of
    the folder, and from a snapshot in the Hub's cache to that cache's blobs.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}; expected a model's folder")
    for file in (*_links(folder), *further_files(folder)):
        if not _is_inside(folder, file):
            raise ModelError(
                f"{file} leads out of its folder, to {os.path.realpath(file)}; put a copy of the file in its place"
            )
    for file in sorted({file for pattern in CONFIGS for file in folder.glob(pattern)}):
        for key, value in _values(read_json(file)):
            _require_harmless(file, key, value)


def _links(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_symlink() and not file.is_dir()]


def further_files(folder: Path) -> list[Path]:
    """Files that a loader reads in a folder beside those of usual names there, sorted: `distill.embedded` has these.

    Raises `ModelError` where one is named that is outside of the folder or no safetensors.
    """
    found = set(folder.glob("additional_chat_templates/*.jinja"))
    found |= {folder / name for name in _configurations(folder)}
    found |= {folder / name for name in _weights(folder) if "/" in name}
    if not (folder / "tokenizer.json").is_file():
        found |= {file for pattern in VOCABULARIES for file in folder.glob(pattern)}
    return sorted(file for file in found if file.is_file())


def _configurations(folder: Path) -> list[str]:
    """Names of configurations and tokenizers for certain versions of transformers."""
    found = []
    for source, key in (("config.json", "configuration_files"), ("tokenizer_config.json", "fast_tokenizer_files")):
        names = _settings(folder / source).get(key)
        found += [_inner(folder / source, name) for name in (names if isinstance(names, list) else [])]
    return [name for name in found if name not in ("config.json", "tokenizer.json")]


def _weights(folder: Path) -> set[str]:
    """Names of the files of weights, and of their index, that configurations and indexes name."""
    found = set()
    indexes = set(folder.glob(f"*{INDEX}"))
    for name in ("config.json", *_configurations(folder)):
        if (given := _settings(folder / name).get("transformers_weights")) is not None:
            found.add(_weight_name(folder / name, given, WEIGHTS, INDEX))
            indexes |= {folder / given} if given.endswith(INDEX) else set()
    return found.union(*(shards(index) for index in indexes))


def shards(index: Path) -> set[str]:
    """The names of the files that an index of weights names. Raises `ModelError` where one is no safetensors in it."""
    named = _settings(index).get("weight_map", {})
    if not isinstance(named, dict):
        raise ModelError(f"{index} is damaged: its weight_map is {type(named).__name__}, no object; copy it again")
    return {_weight_name(index, name, WEIGHTS) for name in named.values()}


def _weight_name(source: Path, name: object, *endings: str) -> str:
    inner = _inner(source, name)
    if not inner.endswith(endings):
        raise ModelError(
            f"{source} names {_shown(name)} as weights, which may be a pickle that can run code; expected *.safetensors"
        )
    return inner


def _inner(source: Path, name: object) -> str:
    """A file's name as another file gives it, if it can only be in that file's folder. Raises `ModelError`."""
    if not isinstance(name, str) or not name or PurePosixPath(name).is_absolute() or ".." in re.split(r"[/\\]", name):
        raise ModelError(f"{source} names {_shown(name)}; expected the name of a file in {source.parent}")
    return name


def _require_harmless(source: Path, key: str, value: object) -> None:
    """Raise `ModelError` for a value that has a loader read another file, fetch a kernel, or build without end."""
    if isinstance(value, str) and "_implementation" in key and "/" in value:
        raise ModelError(f"{source} asks for code from the Hub ({_shown(value)}), which distill does not run")
    if isinstance(value, str) and _names_file_outside(source.parent, key, value):
        raise ModelError(f"{source} names {_shown(value)}, which is not in its folder; take that setting out")
    name = key.rpartition(".")[2]
    least = int(key in ("num_hidden_layers", "text_config.num_hidden_layers"))
    if type(value) is int and _LAYERS.fullmatch(name) and not least <= value <= MOST_LAYERS:
        raise ModelError(f"{source} says {name}: {_shown(value)}; expected {least} to {MOST_LAYERS}")


def _names_file_outside(folder: Path, key: str, value: str) -> bool:
    """Whether a text is the path of a file elsewhere; what a model was made from (`_name_or_path`) is never opened."""
    if key.endswith("name_or_path") or not ("/" in value or key.endswith("_file")):
        return False
    return any(os.path.isfile(path) and not _is_inside(folder, Path(path)) for path in (value, str(folder / value)))


def _is_inside(folder: Path, file: Path) -> bool:
    """Whether a file is in the folder, links followed; of a snapshot of the Hub's cache, its blobs are as well."""
    base = Path(os.path.realpath(folder))
    homes = [base]
    for parent in base.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            homes += [parent.parent / "blobs", parent.parent.parent / "blobs"]  # the latter: shared by repositories
    target = Path(os.path.realpath(file))
    return any(target.is_relative_to(home) for home in homes)


def read_json(path: Path) -> Any:
    """The file's JSON value; `None` where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _settings(path: Path) -> dict[str, Any]:
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _values(value: Any) -> Iterator[tuple[str, object]]:
    """Every text and number in a JSON value, with the keys that lead to it."""
    waiting = [("", value)]
    while waiting:
        key, one = waiting.pop()
        if isinstance(one, dict):
            waiting += [(f"{key}.{name}" if key else name, inner) for name, inner in one.items()]
        elif isinstance(one, list):
            waiting += [(key, inner) for inner in one]
        else:
            yield key, one


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


# Loading


def load_config(folder: Path) -> Any:
    """The configuration of a model in a folder. Raises `ModelError`."""
    from transformers import AutoConfig

    require_sound(folder)
    with _only_data(folder, "configuration"):
        return AutoConfig.from_pretrained(folder, **_DATA_ONLY)


def load_tokenizer(folder: Path, kind: str = "AutoTokenizer", *, gguf_file: str | None = None) -> Any:
    """The tokenizer in a folder, or in a GGUF file of it, by a class of transformers. Raises `ModelError`."""
    import transformers

    if gguf_file is None:
        require_sound(folder)
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    with _only_data(folder, "tokenizer"):
        return getattr(transformers, kind).from_pretrained(folder, **_DATA_ONLY, **options)


def load_model(folder: Path, kind: str, *, unused: tuple[str, ...] = (), **options: Any) -> Any:
    """The model in a folder, by a class of transformers; from its safetensors, or from `gguf_file` in it.

    Weights whose names begin with one of `unused` may be missing. Raises `ModelError`, also where another is missing:
    transformers would make it up.
    """
    import transformers

    if "gguf_file" not in options:
        require_sound(folder)
        _require_no_adapter(folder)
    with _only_data(folder, "model"):
        model, report = getattr(transformers, kind).from_pretrained(
            folder, **_DATA_ONLY, use_safetensors=True, output_loading_info=True, **options
        )
        lacking = sorted(name for name in report["missing_keys"] if not name.startswith(unused))
        if lacking:
            raise ModelError(_lacks(folder, lacking))
        return model


def _lacks(folder: Path, names: list[str]) -> str:
    count = "one of the weights" if len(names) == 1 else f"{len(names)} of the weights"
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return f"{folder} lacks {count} that its configuration needs ({shown}); copy the whole model again"


def _require_no_adapter(folder: Path) -> None:
    """Transformers would put it on the model, whose missing weights it then does not report."""
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter beside a whole model (adapter_config.json); merge it, or move it elsewhere"
        )


def load_adapter(model: Any, folder: Path) -> Any:
    """A model with the LoRA adapter in a folder beside its weights. Raises `ModelError`."""
    from peft import PeftModel

    require_sound(folder)
    if (kind := _settings(folder / "adapter_config.json").get("peft_type")) != "LORA":
        raise ModelError(f"{folder}/adapter_config.json is of an adapter of type {_shown(kind)}; expected 'LORA'")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} has no adapter_model.safetensors; pickles, such as adapter_model.bin, are not read")
    with warnings.catch_warnings(), _only_data(folder, "adapter"):
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT 0.21
        warnings.filterwarnings("error", "Found missing adapter keys")  # PEFT would go on with those it makes up
        return PeftModel.from_pretrained(model, folder)


@contextmanager
def _only_data(folder: Path, what: str) -> Iterator[None]:
    """Have the libraries neither fetch nor run anything, and say in one line why something cannot be read.

    Transformers asks on the terminal whether to run a model's code where one of its own calls leaves that open, such
    as for a part of a model; with no time to answer it does not ask.
    """
    from huggingface_hub import constants
    from transformers import dynamic_module_utils as foreign_code

    before = foreign_code.TIME_OUT_REMOTE_CODE, constants.HF_HUB_OFFLINE
    foreign_code.TIME_OUT_REMOTE_CODE, constants.HF_HUB_OFFLINE = 0, True
    try:
        with quietly():
            yield
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(_reason(folder, what, error)) from error
    finally:
        foreign_code.TIME_OUT_REMOTE_CODE, constants.HF_HUB_OFFLINE = before


def _reason(folder: Path, what: str, error: Exception) -> str:
    said = str(error)
    if _OWN_CODE.search(said) and (source := _code_named_in(folder)):
        return (
            f"{folder} needs its own Python code (auto_map in {source}), which distill does not run; "
            "use a model that transformers knows"
        )
    if "the above report" in said:  # of sizes that differ, and of parts that do not make a whole; nobody sees it
        return f"the model in {folder} cannot be read: its weights are not those that its config.json describes"
    return f"the {what} in {folder} cannot be read: {first_line(error)}"


def _code_named_in(folder: Path) -> str | None:
    """The first file that names classes of the folder's own, for the model or for a part of it."""
    for file in sorted(folder.glob("*config*.json")):
        if any("auto_map" in key.split(".") for key, _ in _values(read_json(file))):
            return file.name
    return None
