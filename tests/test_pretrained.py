"""A model's folder that came from elsewhere gives numbers, a tokenizer and a template, nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import distill
from distill import pretrained
from distill.embedded import fingerprint
from distill.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21

TAMPERED = "from pathlib import Path\nPath({mark!r}).touch()\n"


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def change(file: Path, **settings: Any) -> None:
    """Set keys of a JSON file, or take out those that are None."""
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({key: value for key, value in {**found, **settings}.items() if value is not None}))


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
        pretrained.require_sound(folder)
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
        pretrained.require_sound(folder)


@pytest.mark.parametrize("named", [["a"], "model.safetensors", 5, None])
def test_a_weight_map_that_is_no_object_is_one_line(folder, named):
    (folder / INDEX).write_text(json.dumps({"weight_map": named}))
    with pytest.raises(ModelError) as error:
        pretrained.require_sound(folder)
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
        pretrained.require_sound(folder)
    assert f"{folder / file} names " in one_line(error)


def test_what_a_model_was_made_from_may_be_named_anywhere(folder):
    made_from = str(folder.parent / "outside.txt")
    change(folder / "config.json", _name_or_path=made_from)
    change(folder / "tokenizer_config.json", name_or_path=made_from, tokenizer_file="/home/anna/.cache/tokenizer.json")
    change(folder / "adapter_config.json", base_model_name_or_path=made_from)
    pretrained.require_sound(folder)


@pytest.mark.parametrize("place", ["", "text_config"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_that_asks_for_a_kernel_of_the_hub_is_refused(folder, key, place):
    change(folder / "config.json", **({place: {key: "anna/kernel"}} if place else {key: "anna/kernel"}))
    with pytest.raises(ModelError, match="asks for code from the Hub"):
        pretrained.require_sound(folder)


@pytest.mark.parametrize("layers", [10**6, -1, 0, 10**400])
def test_a_number_of_layers_that_no_model_has_is_one_line(folder, layers):
    change(folder / "config.json", num_hidden_layers=layers)
    with pytest.raises(ModelError) as error:
        pretrained.require_sound(folder)
    assert "num_hidden_layers" in one_line(error)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "5", '{"weight_map"', '"', "\x00"])
@pytest.mark.parametrize("name", [INDEX, "config.json", "tokenizer_config.json"])
def test_settings_that_cannot_be_read_are_left_to_the_loader(folder, name, text):
    (folder / name).write_text(text)
    pretrained.require_sound(folder)


# Links


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "vocab.bpe"]
)
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_out_of_the_folder_is_refused(folder, name, relative):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../outside.txt" if relative else folder.parent / "outside.txt")
    for look in (pretrained.require_sound, lambda folder: fingerprint(str(folder))):
        with pytest.raises(ModelError) as error:
            look(folder)
        assert f"{folder / name} leads out of its folder" in one_line(error)


def test_a_chain_of_links_is_judged_by_its_end(folder):
    (folder / "b.txt").symlink_to(folder.parent / "outside.txt")
    (folder / "a.txt").symlink_to("b.txt")
    with pytest.raises(ModelError, match=r"outside\.txt"):
        pretrained.require_sound(folder)


def test_a_linked_folder_of_weights_or_templates_is_refused(folder):
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").symlink_to(elsewhere)
    with pytest.raises(ModelError, match=r"own\.jinja leads out of its folder"):
        pretrained.require_sound(folder)


def test_links_within_the_folder_and_to_it_are_followed(folder):
    (folder / "spare.safetensors").symlink_to("model.safetensors")
    (folder.parent / "link").symlink_to(folder)
    pretrained.require_sound(folder.parent / "link")
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
        pretrained.require_sound(snapshot)


# Weights


@pytest.fixture
def model(tiny: str, tmp_path: Path) -> Path:
    """A whole model's folder of this test's own."""
    return Path(shutil.copytree(tiny, tmp_path / "whole"))


def without(file: Path, *ends: str) -> None:
    """Take the weights with these ends of names out of a file of safetensors."""
    from safetensors.torch import load_file, save_file

    found = load_file(file)
    kept = {name: tensor.clone() for name, tensor in found.items() if not name.endswith(ends)}
    assert len(kept) < len(found)
    save_file(kept, file, metadata={"format": "pt"})


def load(folder: Path) -> Any:
    return pretrained.load_model(folder, "AutoModelForCausalLM")


@pytest.mark.model
@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.weight", "norm.weight", "embed_tokens.weight"])
def test_a_model_that_lacks_weights_is_one_line(model, name):
    without(model / "model.safetensors", name)
    with pytest.raises(ModelError) as error:
        load(model)
    assert f"{model} lacks" in one_line(error)
    assert name in str(error.value)


@pytest.mark.model
def test_a_head_may_be_missing_only_where_it_is_tied(model):
    assert load(model).config.tie_word_embeddings
    change(model / "config.json", tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"lacks one of the weights .* \(lm_head\.weight\)"):
        load(model)


@pytest.mark.model
@pytest.mark.parametrize("settings", [{"hidden_size": 128}, {"num_hidden_layers": 5}, {"vocab_size": 10**9}])
def test_weights_that_do_not_fit_their_configuration_are_one_line(model, settings):
    change(model / "config.json", **settings)
    with pytest.raises(ModelError) as error:
        load(model)
    assert str(model) in one_line(error)


@pytest.mark.model
def test_a_pickle_beside_safetensors_is_not_opened(model):
    (model / "pytorch_model.bin").write_bytes(b"\x80no pickle")
    assert load(model).config.num_hidden_layers == 4
    (model / "model.safetensors").rename(model / "other.safetensors")
    with pytest.raises(ModelError):
        load(model)


@pytest.mark.model
def test_a_whole_model_with_an_adapter_beside_it_is_refused(model):
    change(model / "adapter_config.json", peft_type="LORA", base_model_name_or_path="../other")
    with pytest.raises(ModelError, match="holds an adapter beside a whole model"):
        load(model)


def embedder(folder: Path, tokenizer: Path, *, pooler: bool) -> Path:
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=49152, **shape), add_pooling_layer=pooler).save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.model
def test_a_model_of_sentence_vectors_may_lack_the_pooler_alone(tiny, tmp_path):
    from distill.vectors import embedded

    folder = embedder(tmp_path / "vectors", Path(tiny), pooler=False)
    assert embedded(["one", "two"], folder, 16, key="model").shape == (2, 16)
    without(folder / "model.safetensors", "layer.1.output.dense.weight")
    with pytest.raises(ModelError, match=r"model: .* lacks one of the weights"):
        embedded(["one"], folder, 16, key="model")


@pytest.fixture
def adapter(tiny: str, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    options = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load(Path(tiny)), options).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.model
def test_an_adapter_that_lacks_weights_is_one_line(adapter, tiny):
    pretrained.load_adapter(load(Path(tiny)), adapter)
    without(adapter / "adapter_model.safetensors", "layers.1.self_attn.q_proj.lora_B.weight")
    with pytest.raises(ModelError) as error:
        pretrained.load_adapter(load(Path(tiny)), adapter)
    assert "missing adapter keys" in one_line(error)


@pytest.mark.model
@pytest.mark.parametrize("kind", ["XLORA", "MULTITASK_PROMPT_TUNING", "own.Adapter", None, {}])
def test_an_adapter_of_another_kind_is_refused(adapter, tiny, kind):
    change(adapter / "adapter_config.json", peft_type=kind)
    with pytest.raises(ModelError, match="expected 'LORA'"):
        pretrained.load_adapter(None, adapter)


@pytest.mark.model
def test_an_adapter_in_a_pickle_is_refused(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        pretrained.load_adapter(None, adapter)


# Code


OWN = ["own.Own", "own.Own"]
NEEDS_CODE = {
    "config.json": {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}},
    "tokenizer_config.json": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": OWN}},
}
NEEDS_NONE = {
    "config.json": {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": OWN}},
    "processor_config.json": {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Own"}},
    "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "own.Own"}},
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "own.Own"}],
}


def tamper(folder: Path) -> Path:
    """Put code into a model's folder that leaves a mark where it runs; returns the mark's path."""
    mark = folder.parent / "ran"
    (folder / "custom_generate").mkdir()
    for file in ("own.py", "__init__.py", "custom_generate/generate.py"):
        (folder / file).write_text(TAMPERED.format(mark=str(mark)))
    return mark


def served(folder: Path, cache: Path) -> str:
    """What `yes | distill serve FOLDER` says, to its end or until it listens."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache)}
    command = [str(Path(sys.executable).with_name("distill")), "serve", str(folder), "--port", "0"]
    with (
        subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes,
        subprocess.Popen(
            command, stdin=yes.stdout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as server,
    ):
        said = ""
        for line in server.stdout:
            said += line
            if "listening" in line:
                break
        server.terminate()
        yes.kill()
    return said


@pytest.mark.model
@pytest.mark.parametrize("file", list(NEEDS_CODE))
def test_a_model_that_needs_its_own_code_is_one_line_and_runs_nothing(model, tmp_path, file):
    mark = tamper(model)
    change(model / file, **NEEDS_CODE[file])
    assert served(model, tmp_path / "modules") == (
        f"error: {model} needs its own Python code (auto_map in {file}), which distill does not run; "
        "use a model that transformers knows\n"
    )
    assert not mark.exists()


@pytest.mark.model
def test_a_part_of_a_model_that_needs_its_own_code_is_one_line_and_runs_nothing(model, tmp_path):
    mark = tamper(model)
    part = {"model_type": "blip_text_model", "auto_map": {"AutoModel": "own.Own"}, "_name_or_path": str(model)}
    change(model / "config.json", model_type="fuyu", text_config={**part, "pad_token_id": 0, "vocab_size": 100})
    said = served(model, tmp_path / "modules")
    assert said.count("\n") == 1
    assert "needs its own Python code (auto_map in config.json)" in said
    assert not mark.exists()


@pytest.mark.model
def test_code_that_a_model_could_do_without_is_not_run(model, tmp_path):
    mark = tamper(model)
    for file, settings in NEEDS_NONE.items():
        if isinstance(settings, dict):
            change(model / file, **settings)
        else:
            (model / file).write_text(json.dumps(settings))
    assert served(model, tmp_path / "modules").startswith("listening http://127.0.0.1:")
    assert not mark.exists()
