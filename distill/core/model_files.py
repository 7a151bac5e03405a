"""Checks a model folder before anything opens it: names, links and file types. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from distill.core.files import read_json
from distill.errors import ModelError, one_line, shorten

WEIGHTS, INDEX = ".safetensors", ".safetensors.index.json"
"""Suffixes of files with weights, and of indexes that map each weight to its file."""

CONFIGS = (
    "config.json",
    "config.*.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
)
"""Configuration files that a loader acts upon."""

VOCABULARIES = ("*tekken*.json", "tokenizer.model.*", "bpe.codes", "emoji.json", "byte_maps.json")
"""Sources of a tokenizer without tokenizer.json, besides those that the first fingerprints cover."""

MOST_LAYERS = 1000
"""Far more than any model has; a loader builds as many as the configuration says before it reads a weight."""

_LAYERS = re.compile(r"(num|n)_(\w+_)?layers?|(en|de)coder_layers")


def local_folder(model: str) -> Path | None:
    """The folder of a model: a path, or a Hub id that is complete in the Hub's cache; `None` where it is not here."""
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path
    with suppress(ImportError, OSError, ValueError):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, local_files_only=True))
    return None


def describe_on_hub(model: str) -> None:
    """Fetch configuration and tokenizer of a Hub id into the Hub's cache, where `local_folder` has them from then on.

    Does nothing without the package huggingface_hub. Raises `ModelError` where the Hub does not give them.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
        from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
    except ImportError:
        return
    disable_progress_bars()
    try:
        snapshot_download(model, allow_patterns=[*CONFIGS, "tokenizer.json"])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"student.model: {model} is not on this machine, and the Hub did not give it ({one_line(str(error), 120)});"
            " correct the name, or add --offline-student to ask the teacher before the model is there"
        ) from error
    finally:
        enable_progress_bars()


# Checks


def require_sound(folder: Path) -> None:
    """Raise `ModelError` where a loader that opens the folder would read anything but data inside it.

    Configured file names must stay in the folder, and weights must be safetensors. Links may point to files in the
    folder and, from a snapshot in the Hub's cache, to that cache's blobs.
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
    """Files, sorted, that a loader reads in a folder besides the usual names, which `core.weights` lists.

    Raises `ModelError` where one is outside the folder, or has weights and is not safetensors.
    """
    files = set(folder.glob("additional_chat_templates/*.jinja"))
    files |= {folder / name for name in _configurations(folder)}
    files |= {folder / name for name in _weights(folder) if "/" in name}
    if not (folder / "tokenizer.json").is_file():
        files |= {file for pattern in VOCABULARIES for file in folder.glob(pattern)}
    return sorted(file for file in files if file.is_file())


def _configurations(folder: Path) -> list[str]:
    """Names of configuration and tokenizer files for certain versions of transformers."""
    inner = []
    for source, key in (("config.json", "configuration_files"), ("tokenizer_config.json", "fast_tokenizer_files")):
        values = _settings(folder / source).get(key)
        inner += [_inner(folder / source, name) for name in (values if isinstance(values, list) else [])]
    return [name for name in inner if name not in ("config.json", "tokenizer.json")]


def _weights(folder: Path) -> set[str]:
    """Names of files with weights in configurations and indexes."""
    weights = set()
    indexes = set(folder.glob(f"*{INDEX}"))
    for name in ("config.json", *_configurations(folder)):
        if (value := _settings(folder / name).get("transformers_weights")) is not None:
            weights.add(_weight_name(folder / name, value, WEIGHTS, INDEX))
            indexes |= {folder / value} if value.endswith(INDEX) else set()
    return weights.union(*(shards(index) for index in indexes))


def shards(index: Path) -> set[str]:
    """Names of the files in an index of weights. Raises `ModelError` unless all are safetensors in its folder."""
    weight_map = _settings(index).get("weight_map", {})
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index} is damaged: its weight_map is {type(weight_map).__name__}, no object; copy it again")
    return {_weight_name(index, name, WEIGHTS) for name in weight_map.values()}


def _weight_name(source: Path, name: object, *endings: str) -> str:
    inner = _inner(source, name)
    if not inner.endswith(endings):
        raise ModelError(
            f"{source} names {_shown(name)} as weights, which may be a pickle that can run code; expected *.safetensors"
        )
    return inner


def _inner(source: Path, name: object) -> str:
    """A file name read from `source`, if it stays in the folder of `source`. Raises `ModelError`."""
    if not isinstance(name, str) or not name or PurePosixPath(name).is_absolute() or ".." in re.split(r"[/\\]", name):
        raise ModelError(f"{source} names {_shown(name)}; expected the name of a file in {source.parent}")
    return name


def _require_harmless(source: Path, key: str, value: object) -> None:
    """Raise `ModelError` for a value that makes a loader read another file, fetch a kernel, or build endless layers."""
    if isinstance(value, str) and "_implementation" in key and "/" in value:
        raise ModelError(f"{source} asks for code from the Hub ({_shown(value)}), which distill does not run")
    if isinstance(value, str) and _names_file_outside(source.parent, key, value):
        raise ModelError(f"{source} names {_shown(value)}, which is not in its folder; take that setting out")
    name = key.rpartition(".")[2]
    least = int(key in ("num_hidden_layers", "text_config.num_hidden_layers"))
    if type(value) is int and _LAYERS.fullmatch(name) and not least <= value <= MOST_LAYERS:
        raise ModelError(f"{source} says {name}: {_shown(value)}; expected {least} to {MOST_LAYERS}")


def _names_file_outside(folder: Path, key: str, value: str) -> bool:
    """Whether a text is the path of an existing file elsewhere; the origin (`_name_or_path`) is never opened."""
    if key.endswith("name_or_path") or not ("/" in value or key.endswith("_file")):
        return False
    return any(os.path.isfile(path) and not _is_inside(folder, Path(path)) for path in (value, str(folder / value)))


def _is_inside(folder: Path, file: Path) -> bool:
    """Whether a file is in the folder, following links; the blobs of a snapshot in the Hub's cache count as inside."""
    base = Path(os.path.realpath(folder))
    homes = [base]
    for parent in base.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            homes += [parent.parent / "blobs", parent.parent.parent / "blobs"]  # the latter: shared by repositories
    target = Path(os.path.realpath(file))
    return any(target.is_relative_to(home) for home in homes)


def _settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    return settings if isinstance(settings, dict) else {}


def _values(value: Any) -> Iterator[tuple[str, object]]:
    """Every text and number in a JSON value, after its dotted key."""
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
    return shorten(repr(value), 80)
