"""Resolves a recipe's model name to a safetensors folder, and loads it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from distill.core import model_files
from distill.core.console import Say, silent
from distill.core.embedded import EMBEDDED, fetch
from distill.core.files import cache_dir, locked, read_json, write_json, writing
from distill.core.hashing import file_sha256
from distill.core.weights import CONFIG_FILES, WEIGHT_FILES, fingerprint, looks_like_path, read_base, require_base
from distill.errors import MissingPackage, ModelError
from distill.models import pretrained
from distill.models.device import default_device, default_dtype, free_memory
from distill.models.gguf.reading import part_pad_from_eos, read_gguf
from distill.models.pruning import prune
from distill.models.quantization import _nf4, _settle_quantised, dequantised, require_quantised
from distill.models.third_party import first_line, quietly

CONVERSION = 2
"""Raised when a converted folder would come out differently, so that older ones are built again."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
"""One of these a model folder must have."""

_MANIFEST = "manifest.json"


# From a name to a folder


def materialise(model: str, *, say: Say = silent) -> Path:
    """A folder with safetensors and tokenizer for an embedded name, a .gguf file, a folder or a Hub id.

    The first two are converted once into the cache; a damaged conversion is detected and built again. A folder's own
    code is never run and pickles are never read. Raises `ModelError`.
    """
    if model in EMBEDDED:
        return _converted(EMBEDDED[model].name, EMBEDDED[model].sha256, lambda: fetch(model, say=say), say)
    path = Path(model).expanduser()
    if model and path.is_dir():
        return _checked_folder(path)
    if path.is_file() and path.suffix == ".gguf":
        return _converted(re.sub(r"[^\w.-]", "_", path.stem), fingerprint(model), lambda: path, say)
    if looks_like_path(model):
        fingerprint(model)  # raises with what is expected
        raise ModelError(f"{model} is neither a folder nor a .gguf file")
    return _from_hub(model, say)


def _checked_folder(folder: Path) -> Path:
    """The folder, if it has a configuration, a tokenizer and all of its safetensors. Raises `ModelError`."""
    if not (folder / "config.json").is_file():
        if files := sorted(folder.glob("*.gguf")):
            raise ModelError(f"{folder} is no model folder, but holds {files[0].name}; give that file: {files[0]}")
        raise ModelError(f"{folder} has no config.json; expected a model folder as `save_pretrained` writes it")
    if not any(folder.glob("*.safetensors")):
        pickles = [f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in sorted(folder.glob(pattern))]
        if pickles:
            raise ModelError(
                f"{folder} holds {pickles[0]}, a pickle that can run code; convert it to safetensors first"
            )
        raise ModelError(f"{folder} holds no *.safetensors; expected a model folder as `save_pretrained` writes it")
    model_files.require_sound(folder)
    shards = model_files.shards(folder / "model.safetensors.index.json")
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} of {len(shards)} weight files ({missing[0]}); copy it again")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"{folder} has no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")
    return folder


def _from_hub(model: str, say: Say) -> Path:
    """The Hub's snapshot: from the Hub's own cache if it is complete there, else fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = [*WEIGHT_FILES, *CONFIG_FILES, "*.json", "*.txt"]
    with quietly():
        with suppress(FileNotFoundError, ModelError, HFValidationError):
            return _checked_folder(Path(snapshot_download(model, allow_patterns=patterns, local_files_only=True)))
        say(f"fetching {model} from the Hub")
        try:
            return _checked_folder(Path(snapshot_download(model, allow_patterns=patterns)))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise ModelError(
                f"{model} is no local folder and the Hub did not give it ({first_line(error)}); "
                f"give a path, or `{next(iter(EMBEDDED))}`, which needs no Hub"
            ) from error


# Conversion


def _converted(name: str, sha256: str, source: Callable[[], Path], say: Say) -> Path:
    """The conversion of a GGUF file in the cache; built where it is missing, incomplete or damaged."""
    folder = cache_dir() / "models" / f"{name}-{sha256[:12]}"
    if _is_whole(folder, sha256):
        return folder
    gguf = source()
    with writing(folder.parent), locked(folder.parent / "lock", say=say):
        if not _is_whole(folder, sha256):
            if folder.exists():
                say(f"the converted {name} ({folder}) is damaged; converting it again")
            _build(folder, gguf, sha256, say)
    return folder


def _is_whole(folder: Path, sha256: str) -> bool:
    """Whether every file matches the manifest: sizes always, contents where a time stamp has changed."""
    manifest = read_json(folder / _MANIFEST)
    if not isinstance(manifest, dict) or (manifest.get("source"), manifest.get("conversion")) != (sha256, CONVERSION):
        return False
    files = {folder / name: entry for name, entry in manifest["files"].items()}
    if any(not file.is_file() or file.stat().st_size != entry["size"] for file, entry in files.items()):
        return False
    touched = [file for file, entry in files.items() if file.stat().st_mtime_ns != entry["mtime_ns"]]
    if any(file_sha256(file) != files[file]["sha256"] for file in touched):
        return False
    if touched and os.access(folder, os.W_OK):
        _write_manifest(folder, sha256)
    return True


def _write_manifest(folder: Path, sha256: str) -> None:
    files = {
        file.name: {"size": file.stat().st_size, "mtime_ns": file.stat().st_mtime_ns, "sha256": file_sha256(file)}
        for file in sorted(folder.iterdir())
        if file.name != _MANIFEST
    }
    write_json(folder / _MANIFEST, {"source": sha256, "conversion": CONVERSION, "files": files})


def _build(folder: Path, gguf: Path, sha256: str, say: Say) -> None:
    """Convert into a temporary folder and rename it; the caller holds the lock, so leftovers can be deleted."""
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    beside = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    beside.mkdir()
    say(f"converting {gguf.name} to safetensors, once (135M parameters: about 20 seconds)")
    try:
        _check_space(beside, gguf)
        convert(gguf, beside)
        _write_manifest(beside, sha256)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_space(folder: Path, gguf: Path) -> None:
    size = 5 * gguf.stat().st_size  # float16 takes 3.6 times the space of Q4
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ModelError(
            f"converting {gguf.name} needs {size / 1e6:.0f} MB in {folder.parent}, and {free / 1e6:.0f} MB are free; "
            "free some, or set DISTILL_CACHE to another disk"
        )


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's weights and tokenizer as safetensors into an existing folder.

    Weights are stored in float16, which represents the products of a GGUF's float16 scales and small integers best (KL
    to the exact float32 weights, SmolLM2 Q4_1, mean over 12 answers: 1.5e-6 nats per token; bfloat16 5.0e-5; float32
    would take 538 MB instead of 269). config.json then says bfloat16 for `dtype="auto"`, which no activation overflows.
    Raises `ModelError` when the file is damaged or of an unknown architecture.
    """
    model, tokenizer = read_gguf(gguf)
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id
    try:
        with quietly():
            model.to(_storage(model)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise ModelError(
            f"{folder} cannot be written ({first_line(error)}); free space, or set DISTILL_CACHE"
        ) from error
    config = read_json(folder / "config.json")
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", {**config, "dtype": "bfloat16"})


def _storage(model: Any) -> torch.dtype:
    widest = max(weight.detach().abs().max().item() for weight in model.parameters())
    return torch.float16 if widest < torch.finfo(torch.float16).max else torch.bfloat16


def load_tokenizer(folder: Path | str) -> Any:
    """The folder's tokenizer, with a pad token that differs from the end token where the vocabulary has one."""
    tokenizer = pretrained.load_tokenizer(Path(folder))
    part_pad_from_eos(tokenizer)
    return tokenizer


def load_causal(
    folder: Path | str,
    *,
    layers: Sequence[int] | None = None,
    quantise: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """A causal language model in evaluation mode.

    `layers` keeps only these decoder layers; `quantise` stores the linear weights as NF4 with double quantisation
    and computes in `dtype`. NF4 codes are computed from float32 values, so that they do not depend on `dtype`.
    Raises `ModelError` when the folder cannot be read or nothing in it can be quantised, `MissingPackage` without
    bitsandbytes.
    """
    place = torch.device(device) if device is not None else default_device()
    kind = dtype or default_dtype(place)
    options: dict[str, Any] = {"quantization_config": _nf4(kind)} if quantise else {}
    storage_dtype = torch.float32 if quantise else kind
    try:
        model = pretrained.load_model(
            Path(folder), pretrained.kind_of(Path(folder)), dtype=storage_dtype, device_map={"": place}, **options
        )
    except ModelError as error:
        if isinstance(error.__cause__, ImportError) and quantise:
            reason = first_line(error.__cause__)
            raise MissingPackage(f"4-bit weights need the package `bitsandbytes` ({reason})") from error
        raise
    if layers is not None:
        prune(model, layers)
    if quantise:
        require_quantised(model)
        _settle_quantised(model, kind)
    free_memory()
    return model.eval()


def load_student(
    student_folder: Path,
    *,
    adapter: bool,
    merge: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Any, Any]:
    """A student as (model, tokenizer): its pruned base, dequantised from NF4, with the adapter merged in float32.

    So what is compared is what was trained: KL to the trained 4-bit model 8.9e-7, against 1.3e-4 when merged into
    the weights before quantisation. `adapter=False` is the student before training. `merge=False` is the student as it
    was trained: 4-bit weights, computing in float32, with a separate adapter. A fully trained student has its weights
    in its own folder, and no adapter. Raises `ModelError` when the base has changed since.
    """
    info = read_base(student_folder)
    place = torch.device(device) if device is not None else default_device()
    if adapter and info.get("method") == "full":
        return load_causal(student_folder, dtype=dtype, device=place), load_tokenizer(student_folder)
    require_base(student_folder)
    folder = materialise(info["model"])
    model = load_causal(
        folder, layers=info["layers"], quantise=bool(info["quantised"]), dtype=torch.float32, device=place
    )
    with quietly():
        if info["quantised"] and merge:
            model = dequantised(model)
        if adapter:
            model = adapted(model, student_folder, merge=merge)
    if merge:
        model = model.to(dtype or default_dtype(place))
    free_memory()
    return model.eval(), load_tokenizer(student_folder)


def adapted(model: Any, adapter: Path, *, merge: bool) -> Any:
    """A model with the adapter in a folder, merged into its weights or separate from them."""
    both = pretrained.load_adapter(model, adapter)
    return both.merge_and_unload(safe_merge=True) if merge else both
