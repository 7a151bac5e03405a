"""Sentence embeddings, from a model in a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.core.extras import install
from distill.core.files import read_json
from distill.errors import MissingPackage, ModelError
from distill.models import pretrained

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]


AT_ONCE = 32
"""Texts per batch."""
_UNUSED = ("pooler.",)
"""Names of weights that do not affect the vectors, so that a folder may lack them."""


def embedded(texts: Sequence[str], folder: Path, max_tokens: int, *, key: str) -> Vectors:
    """Vectors of length 1, one row per text (N × D, float32).

    The vector of a text is the mean of the model's last hidden states, or the first of them where the folder's pooling
    settings say so. Nothing is fetched and no third-party code runs. `key` is the recipe key that names the folder, for
    errors. Raises `ModelError` where the folder is no model, `MissingPackage` without torch.
    """
    import numpy as np

    model, tokenizer = _load(folder, key)
    order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), place))
    first = _takes_first_token(folder)
    vectors: dict[int, Any] = {}
    for start in range(0, len(order), AT_ONCE):
        places = order[start : start + AT_ONCE]
        pooled = _pooled(model, tokenizer, [texts[place] for place in places], max_tokens, first=first)
        vectors.update(zip(places, pooled, strict=True))
    rows = np.stack([vectors[place] for place in range(len(texts))]).astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12)))


def _load(folder: Path, key: str) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(f"{key}: {folder} lacks config.json or *.safetensors; give a model's local folder")
    try:
        tokenizer = pretrained.load_tokenizer(folder)
        model = pretrained.load_model(folder, "AutoModel", unused=_UNUSED, dtype="float32")
    except ImportError as error:
        raise MissingPackage(f"{key} needs {error.name}, which is not installed; type: {install('train')}") from error
    except ModelError as error:
        raise ModelError(f"{key}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def _takes_first_token(folder: Path) -> bool:
    """Whether the settings of a sentence-transformers model choose the first token, not the mean."""
    settings = read_json(folder / "1_Pooling" / "config.json")
    return isinstance(settings, dict) and bool(settings.get("pooling_mode_cls_token"))


def _pooled(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int, *, first: bool) -> Any:
    """Vectors, N × D, of hidden states N × T × D."""
    import torch

    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    with torch.inference_mode():
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    if first:
        return states[:, 0].numpy()
    mask = batch["attention_mask"].unsqueeze(-1)
    return ((states * mask).sum(1) / mask.sum(1).clamp(min=1)).numpy()
