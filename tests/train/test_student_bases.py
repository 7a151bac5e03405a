"""What a student can be made from: a folder, a GGUF file, a model in the Hub's cache, a part of another's layers."""

from __future__ import annotations

import json
import shutil

import pytest

from distill.errors import DistillError, ModelError
from tests.support.training import SESSIONS, options, run

torch = pytest.importorskip("torch")
constants = pytest.importorskip("huggingface_hub.constants")
pytestmark = pytest.mark.model

SHORT = options(epochs=1, batch_tokens=80, packing="none")


def answers(folder):
    """The trained student's logits after a few tokens."""
    from distill.models.loading import load_student

    with torch.no_grad():
        return load_student(folder, adapter=True)[0](torch.arange(4, 20)[None]).logits


def test_a_gguf_file_is_a_base(tmp_path, monkeypatch):
    from tests.support.models.gguf_file import make_gguf

    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    model = make_gguf(tmp_path / "small.gguf")
    result, lines = run(tmp_path / "student", str(model), sessions=SESSIONS[:6], options=SHORT, layers=None)
    assert (result.rows, lines) == (
        6,
        ["converting small.gguf to safetensors, once (135M parameters: about 20 seconds)"],
    )
    assert answers(tmp_path / "student").isfinite().all()


def test_a_model_in_the_hubs_cache_is_a_base_without_the_hub(tiny, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub/models--owner--tiny/snapshots/0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny, snapshot)
    reference = tmp_path / "hub/models--owner--tiny/refs/main"
    reference.parent.mkdir()
    reference.write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert constants.HF_HUB_OFFLINE
    result, said = run(tmp_path / "student", "owner/tiny", sessions=SESSIONS[:6], options=SHORT)
    assert (result.rows, said) == (6, [])
    assert answers(tmp_path / "student").isfinite().all()
    assert json.loads((tmp_path / "student/base.json").read_text())["model"] == "owner/tiny"


def copied(tiny, tmp_path, change):
    """A copy of the tiny model in which a layer or more are changed, by their weights' names."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_pruned_by_block_a_student_loses_the_layers_that_change_least(tiny, tmp_path):
    def idle(tensors):
        """Layers 2 and 3 of 4 add nothing to what they are given."""
        gone = (
            "layers.1.self_attn.o_proj",
            "layers.1.mlp.down_proj",
            "layers.2.self_attn.o_proj",
            "layers.2.mlp.down_proj",
        )
        return {name: 0 * one if any(part in name for part in gone) else one for name, one in tensors.items()}

    model = copied(tiny, tmp_path, idle)
    _, lines = run(tmp_path / "student", model, sessions=SESSIONS[:6], options=SHORT, layers=2, prune_by="block")
    assert lines == ["layers 2 to 3 of 4 change the states least and are left out"]
    assert json.loads((tmp_path / "student/base.json").read_text())["layers"] == [0, 3]
    from distill.models.loading import load_causal, load_student

    whole, ids = load_causal(model), torch.arange(4, 20)[None]
    with torch.no_grad():
        base, _ = load_student(tmp_path / "student", adapter=False)
        coarse, _ = load_causal(model, quantise=True).dequantize(), None
        torch.testing.assert_close(base(ids).logits, coarse(ids).logits, atol=1e-4, rtol=1e-4)
        assert (whole(ids).logits - base(ids).logits).abs().mean() < 0.1


def test_a_base_without_a_pad_token_trains_with_its_end_token(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = {}

    from transformers import TrainerCallback

    class Seen(TrainerCallback):
        def on_train_begin(self, args, state, control, processing_class=None, **kwargs):
            ids.update(pad=processing_class.pad_token_id, end=processing_class.eos_token_id)

    run(tmp_path / "student", str(folder), sessions=SESSIONS[:6], options=SHORT, callbacks=[Seen()])
    assert ids["pad"] is not None
    assert ids["pad"] != ids["end"]


def test_tokens_without_an_embedding_are_told_and_nothing_is_resized(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    rows = 10_000
    tensors = {name: one[:rows].clone() if one.shape[0] > rows else one for name, one in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    with pytest.raises(
        ModelError, match=r"session s\d+ holds the token .* the model has embeddings for 10000; they are never resized"
    ):
        run(tmp_path / "student", str(folder), options=SHORT)


def test_without_rows_there_is_no_training(tiny, tmp_path):
    with pytest.raises(DistillError, match="none of the 0 sessions can be trained on"):
        run(tmp_path / "student", tiny, sessions=[])
