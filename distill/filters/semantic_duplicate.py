"""Drops sessions that mean what one before means, by a model of sentence vectors in a local folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from distill import recipe
from distill.errors import MissingPackage, ModelError
from distill.filters import Compared, compared_text
from distill.types import Session, Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]

AT_ONCE = 32
"""Texts embedded together."""
BLOCK = 256
"""Rows compared with all kept ones together: 100 MB of cosines at 100,000 rows."""


class SemanticDuplicate:
    """Keeps the first of sessions with much the same meaning: greedy in task order, as `near_duplicate` is.

    Texts become means of a model's last hidden states (or its first token, where the model's folder says so), of
    length 1. The model is read from a local folder of safetensors; nothing is fetched and no foreign code runs.
    """

    class Options(recipe.Options):
        """Options of `filter: semantic_duplicate`."""

        path_fields: ClassVar[tuple[str, ...]] = ("model",)
        model: Annotated[str, Field(min_length=1)]
        """A local folder with config.json, a tokenizer and safetensors, such as all-MiniLM-L6-v2."""
        cosine: Annotated[float, Field(gt=0, le=1)] = 0.9
        """Least cosine of duplicates (semhash's default; Magpie takes 0.975: L2 distance 0.05, squared)."""
        max_tokens: Annotated[int, Field(ge=1)] = 256
        """So much of a text is read (all-MiniLM-L6-v2's own limit)."""
        on: Compared = "prompt"
        """`prompt` (the first user message), `answer`, or `both` as one text."""

    scope: Literal["set"] = "set"

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide_all(self, sessions: Sequence[Session]) -> list[Verdict]:
        """A dropped session's neighbour is the most similar one that stays. Raises `ModelError`, `MissingPackage`."""
        texts = [compared_text(session, self.options.on) for session in sessions]
        if not texts:
            return []
        found = greedy(_embedded(texts, Path(self.options.model), self.options.max_tokens), self.options.cosine)
        return [self._verdict(cosine, sessions[near].id) for cosine, near in found]

    def _verdict(self, cosine: float, near: str) -> Verdict:
        keep = cosine < self.options.cosine
        return Verdict(
            rule="semantic_duplicate",
            keep=keep,
            reason="ok" if keep else "semantic_duplicate",
            value=round(cosine, 4),
            threshold=self.options.cosine,
            neighbour=None if keep else near,
        )


def greedy(rows: Vectors, threshold: float) -> list[tuple[float, int]]:
    """For each row the greatest cosine with a row kept before it (0 for the first), and that row's place."""
    import numpy as np

    found: list[tuple[float, int]] = []
    kept: list[int] = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        earlier = np.array(kept, dtype=np.int64)
        cosines, among = block @ rows[earlier].T, block @ block.T
        for place in range(len(block)):
            own = kept[len(earlier) :]
            row = np.concatenate([cosines[place], among[place, [other - start for other in own]]])
            best = int(row.argmax()) if len(row) else -1
            cosine = float(row[best]) if len(row) else 0.0
            found.append((cosine, kept[best] if len(row) else start + place))
            if cosine < threshold:
                kept.append(start + place)
    return found


def _embedded(texts: Sequence[str], folder: Path, max_tokens: int) -> Vectors:
    """Vectors of length 1, a row a text; texts of like length are embedded together."""
    import numpy as np

    model, tokenizer = _load(folder)
    order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), place))
    first = _takes_first_token(folder)
    made: dict[int, Any] = {}
    for start in range(0, len(order), AT_ONCE):
        places = order[start : start + AT_ONCE]
        pooled = _pooled(model, tokenizer, [texts[place] for place in places], max_tokens, first=first)
        made.update(zip(places, pooled, strict=True))
    rows = np.stack([made[place] for place in range(len(texts))]).astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12)))


def _load(folder: Path) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"semantic_duplicate.model: {folder} lacks config.json or *.safetensors; give a model's local folder"
        )
    try:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype="float32")
    except ImportError as error:
        raise MissingPackage(
            f"semantic_duplicate needs {error.name}, which is not installed; type: pip install 'distill[train]'"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"semantic_duplicate.model: {folder}: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def _takes_first_token(folder: Path) -> bool:
    """What the folder of a sentence-transformers model says of its pooling."""
    try:
        return bool(json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"])
    except (OSError, ValueError, KeyError):
        return False


def _pooled(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int, *, first: bool) -> Any:
    import torch

    given = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    with torch.inference_mode():
        states = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
    if first:
        return states[:, 0].numpy()
    mask = given["attention_mask"].unsqueeze(-1)
    return ((states * mask).sum(1) / mask.sum(1).clamp(min=1)).numpy()
