"""A model's folder that came from elsewhere gives numbers, a tokenizer and a template, nothing else."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

import distill
from distill.core.model_files import require_sound
from distill.core.weights import fingerprint
from distill.errors import ModelError
from tests.support.errors import one_line
from tests.support.models.model_folders import change

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21


def test_models_are_loaded_at_one_place_alone():
    """The model card shows others how to load it."""
    files = Path(distill.__file__).parent.rglob("*.py")
    loading = re.compile(r"\.from_(pretrained|config)\(|\b(Auto(Model|Token|Config|Proc)\w*|PeftModel)\.|torch.load\(")
    found = sorted(file.name for file in files if loading.search(file.read_text(encoding="utf-8")))
    assert found == ["model_card.py", "pretrained.py"]


# What a folder's files name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of a model's folder as is looked at before anything is loaded."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).write_text("{}")
    change(model / "config.json", model_type="llama", num_hidden_layers=2)
    (tmp_path / "outside.safetensors").write_text("{}")
    (tmp_path / "outside.txt").write_text("private")
    return model


INDEX = "model.safetensors.index.json"


OUTSIDE = ("/etc/passwd", "../outside.safetensors", "parts/../../outside.safetensors", "..\\outside.safetensors", 5, "")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize(
    ("file", "key", "shape"),
    [
        (INDEX, "weight_map", lambda name: {"lm_head.weight": "model.safetensors", "b": name}),
        ("other.safetensors.index.json", "weight_map", lambda name: {"a": name}),
        ("config.json", "transformers_weights", lambda name: name),
        ("config.json", "configuration_files", lambda name: ["config.json", name]),
        ("tokenizer_config.json", "fast_tokenizer_files", lambda name: [name]),
    ],
)
def test_a_named_file_outside_of_the_folder_is_refused_before_anything_is_read(folder, file, key, shape, name):
    change(folder / file, **{key: shape(name)})
    with pytest.raises(ModelError) as error:
        require_sound(folder)
    assert f"{folder / file} names" in one_line(error)
    with pytest.raises(ModelError):
        fingerprint(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "model.pt", "model.safetensors.bin", "x"])
@pytest.mark.parametrize(
    ("file", "key"), [(INDEX, "weight_map"), ("config.json", "transformers_weights"), ("old.json", None)]
)
def test_named_weights_that_are_no_safetensors_are_refused(folder, file, key, name):
    if key is None:  # by way of a configuration for other versions
        change(folder / "config.json", configuration_files=["config.9.json"])
        file, key = "config.9.json", "transformers_weights"
    change(folder / file, **{key: {"a": name} if key == "weight_map" else name})
    with pytest.raises(ModelError, match="a pickle that can run code"):
        require_sound(folder)


@pytest.mark.parametrize("named", [["a"], "model.safetensors", 5, None])
def test_a_weight_map_that_is_no_object_is_one_line(folder, named):
    (folder / INDEX).write_text(json.dumps({"weight_map": named}))
    with pytest.raises(ModelError) as error:
        require_sound(folder)
    assert "weight_map" in one_line(error)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("tokenizer_config.json", {"merges_file": "OUTSIDE"}),
        ("tokenizer_config.json", {"vocab_file": "../outside.txt"}),
        ("tokenizer_config.json", {"sp_model_kwargs": {"model_file": "OUTSIDE"}}),
        ("tokenizer_config.json", {"init_inputs": ["OUTSIDE"]}),
        ("config.json", {"vision_config": {"backbone": "OUTSIDE"}}),
        ("adapter_config.json", {"corda_config": {"cache_file": "../outside.txt"}}),
        ("generation_config.json", {"assistant": "OUTSIDE"}),
    ],
)
def test_a_setting_that_is_the_path_of_a_file_elsewhere_is_refused(folder, file, settings):
    text = json.dumps(settings).replace("OUTSIDE", str(folder.parent / "outside.txt"))
    (folder / file).write_text(text)
    with pytest.raises(ModelError) as error:
        require_sound(folder)
    assert f"{folder / file} names " in one_line(error)


def test_what_a_model_was_made_from_may_be_named_anywhere(folder):
    made_from = str(folder.parent / "outside.txt")
    change(folder / "config.json", _name_or_path=made_from)
    change(folder / "tokenizer_config.json", name_or_path=made_from, tokenizer_file="/home/anna/.cache/tokenizer.json")
    change(folder / "adapter_config.json", base_model_name_or_path=made_from)
    require_sound(folder)


@pytest.mark.parametrize("place", ["", "text_config"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_that_asks_for_a_kernel_of_the_hub_is_refused(folder, key, place):
    change(folder / "config.json", **({place: {key: "anna/kernel"}} if place else {key: "anna/kernel"}))
    with pytest.raises(ModelError, match="asks for code from the Hub"):
        require_sound(folder)


@pytest.mark.parametrize("layers", [10**6, -1, 0, 10**400])
def test_a_number_of_layers_that_no_model_has_is_one_line(folder, layers):
    change(folder / "config.json", num_hidden_layers=layers)
    with pytest.raises(ModelError) as error:
        require_sound(folder)
    assert "num_hidden_layers" in one_line(error)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "5", '{"weight_map"', '"', "\x00"])
@pytest.mark.parametrize("name", [INDEX, "config.json", "tokenizer_config.json"])
def test_settings_that_cannot_be_read_are_left_to_the_loader(folder, name, text):
    (folder / name).write_text(text)
    require_sound(folder)


# Links


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "vocab.bpe"]
)
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_out_of_the_folder_is_refused(folder, name, relative):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../outside.txt" if relative else folder.parent / "outside.txt")
    for look in (require_sound, lambda folder: fingerprint(str(folder))):
        with pytest.raises(ModelError) as error:
            look(folder)
        assert f"{folder / name} leads out of its folder" in one_line(error)


def test_a_chain_of_links_is_judged_by_its_end(folder):
    (folder / "b.txt").symlink_to(folder.parent / "outside.txt")
    (folder / "a.txt").symlink_to("b.txt")
    with pytest.raises(ModelError, match=r"outside\.txt"):
        require_sound(folder)


def test_a_linked_folder_of_weights_or_templates_is_refused(folder):
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").symlink_to(elsewhere)
    with pytest.raises(ModelError, match=r"own\.jinja leads out of its folder"):
        require_sound(folder)


def test_links_within_the_folder_and_to_it_are_followed(folder):
    (folder / "spare.safetensors").symlink_to("model.safetensors")
    (folder.parent / "link").symlink_to(folder)
    require_sound(folder.parent / "link")
    assert fingerprint(str(folder.parent / "link")) == fingerprint(str(folder))


def hub_snapshot(folder: Path, *, shared: bool = False) -> Path:
    """The folder as the Hub's cache has it; its weights in the store that repositories share."""
    repository = folder.parent / "hub" / "models--org--model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(folder.iterdir()):
        blob = repository / "blobs" / f"{number:040}"
        if shared:
            stored = repository.parent / "blobs" / "00" / f"{number:064}"
            stored.parent.mkdir(parents=True, exist_ok=True)
            file.rename(stored)
            blob.symlink_to(os.path.relpath(stored, blob.parent))
        else:
            file.rename(blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


@pytest.mark.parametrize("shared", [False, True])
def test_a_snapshot_of_the_hub_may_link_to_the_blobs_of_its_cache(folder, shared):
    before = fingerprint(str(folder))
    snapshot = hub_snapshot(folder, shared=shared)
    assert fingerprint(str(snapshot)) == before


@pytest.mark.parametrize("target", ["../../../outside.txt", "../../refs/main", "/etc/passwd"])
def test_a_snapshot_of_the_hub_may_link_to_nothing_else(folder, target):
    snapshot = hub_snapshot(folder)
    (snapshot / "merges.txt").symlink_to(target)
    with pytest.raises(ModelError, match=r"merges\.txt leads out of its folder"):
        require_sound(snapshot)
