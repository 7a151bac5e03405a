"""Fingerprints of model weights, computed without torch."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from distill.core.embedded import EMBEDDED
from distill.core.files import cache_dir, locked, read_json, write_json
from distill.core.hashing import file_sha256, text_sha256
from distill.core.model_files import further_files, require_sound
from distill.errors import ModelError, RunFolderError

_RACY_NANOSECONDS = 2_000_000_000
"""A younger file may change again within the resolution of its time stamp, so its hash is not kept."""


WEIGHT_FILES = ("*.safetensors",)
"""The only weight files that are read; pickles can run code."""

CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.jinja",
)
"""Every other file of a model folder that changes what the model answers."""


ORIGIN = ("model", "previous")
"""Keys of a student's base.json that its fingerprint leaves out: where it comes from, by path."""

# Fingerprints


def fingerprint(model: str) -> str:
    """Fingerprint of a model's weights, configuration and tokenizer, in hex; `hub:<id>` for one that is on the Hub.

    `model` is an embedded name, a folder, a .gguf file or a Hub id. Hashes are over contents, never over paths or
    times, and are kept in the cache by path, size, inode and times. Raises `ModelError` for a path that does not exist.
    """
    if model in EMBEDDED:
        return EMBEDDED[model].sha256
    path = Path(model).expanduser()
    if model and path.is_dir():
        files = _folder_files(path)
        return _remembered(path, files, lambda: _hash_files(files, path))
    if path.is_file() and path.suffix == ".gguf":
        return _remembered(path, [path], lambda: file_sha256(path))
    if looks_like_path(model):
        raise ModelError(
            f"no model at {model}: give a folder with safetensors, a .gguf file, a Hub id, or {' or '.join(EMBEDDED)}"
        )
    return f"hub:{model}"


def looks_like_path(model: str) -> bool:
    """Whether a model's name can only be meant as a path, not as a Hub id (`name` or `owner/name`)."""
    return model.endswith(".gguf") or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", model)


def student_fingerprint(student_folder: Path) -> str:
    """SHA-256 in hex of a trained student: base, kept layers, template, adapter and tokenizer.

    The path of the base is left out. Raises `ModelError` when base.json or the adapter is missing.
    """
    base = read_base(student_folder)
    files = _folder_files(student_folder)
    if not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(f"{student_folder} holds no adapter (*.safetensors); train the student first")
    settings = {key: value for key, value in base.items() if key not in ORIGIN}
    info = [settings, _adapter_settings(student_folder), _hash_files(files, student_folder)]
    return text_sha256(json.dumps(info, sort_keys=True))


def _adapter_settings(student_folder: Path) -> dict[str, Any]:
    """The settings in adapter_config.json, without the base's path; PEFT writes its sets in any order."""
    document = read_json(student_folder / "adapter_config.json")
    settings = document if isinstance(document, dict) else {}
    return {
        key: sorted(map(str, value)) if isinstance(value, list) else value
        for key, value in settings.items()
        if key != "base_model_name_or_path"
    }


def require_base(student_folder: Path) -> None:
    """Raise `ModelError` where the base of a student is no longer the one that it was trained on."""
    info = read_base(student_folder)
    if (current := fingerprint(info["model"])) != info["fingerprint"]:
        raise ModelError(
            f"the student in {student_folder} was trained on another {info['model']} ({info['fingerprint'][:12]}, "
            f"now {current[:12]}); put that model back, or train again"
        )


def read_base(student_folder: Path) -> dict[str, Any]:
    """The content of a student's base.json: model, fingerprint, layers, template, quantised. Raises `ModelError`."""
    value = read_json(student_folder / "base.json")
    kinds: dict[str, Any] = {"model": str, "fingerprint": str, "template": str, "quantised": int}
    if not isinstance(value, dict) or not all(isinstance(value.get(key), kind) for key, kind in kinds.items()):
        raise ModelError(
            f"no finished student is in {student_folder}: its base.json is missing or incomplete; train the student"
            f" first: distill train {student_folder.parent}"
        )
    if "layers" not in value or not isinstance(value["layers"], list | None):
        raise ModelError(f"{student_folder}/base.json has no list of layers, or null for all; train the student again")
    return value


def _folder_files(folder: Path) -> list[Path]:
    """Every file that affects a model's answers; those that the first release's fingerprints cover come first."""
    require_sound(folder)
    patterns = (*WEIGHT_FILES, *CONFIG_FILES)
    usual = sorted(f for f in folder.iterdir() if f.is_file() and any(fnmatch(f.name, p) for p in patterns))
    return usual + [file for file in further_files(folder) if file not in usual]


def _hash_files(files: list[Path], folder: Path) -> str:
    info = "".join(f"{file_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)
    return text_sha256(info)


def _remembered(path: Path, files: list[Path], hashed: Callable[[], str]) -> str:
    """The files' hash, from the cache unless one of them has changed since."""
    if not any(file.suffix in {".safetensors", ".gguf"} for file in files):
        raise ModelError(f"{path} holds no *.safetensors; expected a model folder as `save_pretrained` writes it")
    store = cache_dir() / "fingerprints.json"
    key = str(path.resolve())
    signature = [[file.name, *_state(file)] for file in files]
    stored = read_json(store)
    entry = stored.get(key) if isinstance(stored, dict) else None
    if isinstance(entry, dict) and entry.get("signature") == signature:
        return str(entry["sha256"])
    sha256 = hashed()
    if time.time_ns() - max(time_ns for file in files for time_ns in _state(file)[-2:]) > _RACY_NANOSECONDS:
        with suppress(OSError, RunFolderError):
            store.parent.mkdir(parents=True, exist_ok=True)
            with locked(store.with_suffix(".lock")):
                stored = read_json(store)
                rest = stored if isinstance(stored, dict) else {}
                write_json(store, {**rest, key: {"signature": signature, "sha256": sha256}})
    return sha256


def _state(file: Path) -> tuple[int, int, int, int]:
    """Size, inode, mtime and ctime (in nanoseconds); no program can set the last."""
    status = file.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
