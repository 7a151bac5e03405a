"""Pruned models: the kept layers and no other, with and without a cache."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from distill.errors import ModelError
from tests.support.errors import one_line
from tests.support.models.gguf_file import TEXT
from tests.support.tiny import save_tiny_model

torch = pytest.importorskip("torch")


models = pytest.importorskip("distill.models.loading")


pruning = pytest.importorskip("distill.models.pruning")


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21


@pytest.fixture(scope="module")
def tiny_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize(("total", "keep"), [(30, 24), (30, 30), (30, 2), (32, 17), (12, 11), (3, 2)])
def test_kept_layers_are_spread_over_the_whole_depth(total: int, keep: int) -> None:
    kept = pruning.kept_layers(total, keep)
    assert len(set(kept)) == keep
    assert list(kept) == sorted(kept)
    assert (kept[0], kept[-1]) == (0, total - 1)
    gaps = [after - before for before, after in pairwise(kept)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("keep", [0, 31])
def test_more_layers_than_there_are_cannot_be_kept(keep: int) -> None:
    with pytest.raises(ModelError) as error:
        pruning.kept_layers(30, keep)
    assert "give 1 to 30" in one_line(error)


@pytest.fixture(scope="module")
def ids(tiny_once: Path) -> Any:
    return models.load_tokenizer(tiny_once)(TEXT, return_tensors="pt").input_ids


@pytest.mark.model
def test_a_pruned_model_is_the_kept_layers_and_no_other(tiny_once: Path, ids: Any) -> None:
    whole, kept = models.load_causal(tiny_once), (0, 2, 3)
    state = whole.model.embed_tokens(ids)
    position = torch.arange(ids.shape[1])[None]
    rotary = whole.model.rotary_emb(state, position)
    for index in kept:
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
        state = whole.model.layers[index](state, attention_mask=mask, position_embeddings=rotary)
    expected = whole.lm_head(whole.model.norm(state))
    torch.testing.assert_close(models.load_causal(tiny_once, layers=kept)(ids).logits, expected)


@pytest.mark.model
def test_a_pruned_model_generates_the_same_with_and_without_its_cache(tiny_once: Path, ids: Any) -> None:
    model = models.load_causal(tiny_once, layers=(1, 3))
    with_cache, without = (
        model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert with_cache.tolist() == without.tolist()


@pytest.mark.model
def test_a_pruned_model_survives_saving(tiny_once: Path, ids: Any, tmp_path: Path) -> None:
    model = models.load_causal(tiny_once, layers=(0, 3))
    model.save_pretrained(tmp_path / "pruned")
    torch.testing.assert_close(models.load_causal(tmp_path / "pruned")(ids).logits, model(ids).logits)


@pytest.mark.model
@pytest.mark.parametrize("layers", [(0, 4), (-1,), ()])
def test_layers_that_are_not_there_cannot_be_kept(tiny_once: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as error:
        models.load_causal(tiny_once, layers=layers)
    assert "the model has 4" in one_line(error)
