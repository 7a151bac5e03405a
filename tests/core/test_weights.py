"""The fingerprint of a model or a student: every file that changes answers counts, its place does not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from distill.core.embedded import EMBEDDED
from distill.core.files import cache_dir
from distill.core.weights import _RACY_NANOSECONDS, fingerprint, looks_like_path, student_fingerprint
from distill.errors import ModelError
from tests.support.errors import one_line
from tests.support.models.wheels import CONTENT, TINY, age

# Fingerprints


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose files are old enough for their hash to be kept."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "notes.md", "pytorch_model.bin"):
        (folder / name).write_text(f"the content of {name}")
        age(folder / name)
    return folder


def test_an_embedded_name_needs_no_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    assert fingerprint("smollm2") == EMBEDDED["smollm2"].sha256
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_any_file_that_changes_answers_changes_the_fingerprint(folder: Path, name: str) -> None:
    before = fingerprint(str(folder))
    (folder / name).write_text("other content")
    assert fingerprint(str(folder)) != before


@pytest.mark.parametrize("name", ["notes.md", "pytorch_model.bin"])
def test_other_files_do_not(folder: Path, name: str) -> None:
    before = fingerprint(str(folder))
    (folder / name).write_text("other content")
    assert fingerprint(str(folder)) == before


USUAL = (
    *("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"),
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.json", "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt"),
    *("tokenizer.model", "README.md", "preprocessor_config.json", "tekken.json", "pytorch_model.bin"),
)


def test_the_fingerprint_of_a_model_is_what_it_was_in_the_first_release(tmp_path: Path) -> None:
    """Keys of paid answers and finished trainings are made of it."""
    (tmp_path / "1_Pooling").mkdir()
    for name in (*USUAL, "1_Pooling/config.json"):
        (tmp_path / name).write_text(f'{{"of": "{name}"}}')
    assert fingerprint(str(tmp_path)) == "c5da213169410ed48f467527f9e7622ef5ee346f9008fff80edd6a92ead8aa05"


def test_the_fingerprint_of_a_student_is_what_it_was_in_the_first_release(tmp_path: Path) -> None:
    for name in ("adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "log"):
        (tmp_path / name).write_text(f'{{"of": "{name}"}}')
    base = {"model": "/home/anna/model", "fingerprint": "00", "layers": [0, 2], "template": "chatml"}
    (tmp_path / "base.json").write_text(json.dumps({**base, "quantised": True, "method": "qlora"}))
    settings = {"peft_type": "LORA", "r": 8, "target_modules": ["v", "q"], "base_model_name_or_path": base["model"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    expected = "e406f3ca607540ef83b215c275a1239ef87b5b8663464140ce8981b8a66268fe"
    assert student_fingerprint(tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "naming"),
    [
        ("additional_chat_templates/tool_use.jinja", None),
        (
            "parts/model-1.safetensors",
            ("model.safetensors.index.json", {"weight_map": {"a": "parts/model-1.safetensors"}}),
        ),
        ("config.4.0.json", ("config.json", {"configuration_files": ["config.4.0.json"]})),
    ],
)
def test_a_file_that_is_read_beside_the_usual_ones_changes_the_fingerprint(folder, name, naming) -> None:
    if naming is not None:
        (folder / naming[0]).write_text(json.dumps(naming[1]))
    (folder / name).parent.mkdir(exist_ok=True)
    found = set()
    for content in ("one", "other"):
        (folder / name).write_text(content)
        found.add(fingerprint(str(folder)))
    assert len(found) == 2


def test_a_vocabulary_changes_the_fingerprint_where_there_is_no_tokenizer_json(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    before = fingerprint(str(folder))
    (folder / "tekken.json").write_text("{}")
    assert fingerprint(str(folder)) != before


def test_the_place_does_not_matter(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(str(folder))
    assert fingerprint(str(folder.rename(tmp_path / "elsewhere"))) == before


@pytest.fixture
def remembered(folder: Path) -> str:
    """The folder's fingerprint, in the cache: its files were last changed long enough ago."""
    time.sleep(_RACY_NANOSECONDS / 1e9)
    return fingerprint(str(folder))


def test_an_unchanged_file_is_not_read_again(folder: Path, remembered: str) -> None:
    store = cache_dir() / "fingerprints.json"
    store.write_text(store.read_text().replace(remembered, "as the cache has it"))
    assert fingerprint(str(folder)) == "as the cache has it"


@pytest.mark.parametrize("how", ["written over", "replaced"])
def test_another_content_of_the_same_size_and_time_is_read_again(folder: Path, remembered: str, how: str) -> None:
    config = folder / "config.json"
    if how == "replaced":
        config.rename(folder / "old.md")
    config.write_text("THE CONTENT OF config.json")
    age(config)
    assert fingerprint(str(folder)) != remembered


def test_a_file_just_written_is_read_again(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text("first")
    stamp = config.stat()
    before = fingerprint(str(folder))
    config.write_text("other")
    os.utime(config, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert fingerprint(str(folder)) != before


def test_a_cache_that_cannot_be_written_only_costs_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(str(folder))
    monkeypatch.setenv("DISTILL_CACHE", str(folder / "config.json" / "below"))
    assert fingerprint(str(folder)) == before


def test_a_gguf_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.gguf").write_bytes(CONTENT)
    assert fingerprint(str(tmp_path / "a.gguf")) == TINY.sha256


def test_any_other_name_is_one_of_the_hub() -> None:
    assert fingerprint("HuggingFaceTB/SmolLM2-360M") == "hub:HuggingFaceTB/SmolLM2-360M"


@pytest.mark.parametrize("model", ["./here", "/nowhere/model", "a/b/c", "missing.gguf", "~/model", "two words", ""])
def test_what_can_only_be_a_path_must_be_there(model: str) -> None:
    assert looks_like_path(model)
    with pytest.raises(ModelError) as error:
        fingerprint(model)
    assert "no model at" in one_line(error)


def test_a_folder_of_pickles_has_no_fingerprint(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError) as error:
        fingerprint(str(folder))
    assert "no *.safetensors" in one_line(error)


# Students


def make_student(folder: Path, *, model: str = "smollm2", layers: tuple[int, ...] = (0, 1), order: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    base = {"model": model, "fingerprint": "ab", "layers": layers, "template": "chatml", "quantised": True}
    (folder / "base.json").write_text(json.dumps(base))
    modules = ["q_proj", "up_proj"][::order]
    settings = {"base_model_name_or_path": model, "r": 4, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").write_text("weights")
    return folder


def test_a_student_is_the_same_wherever_its_base_lies(tmp_path: Path) -> None:
    here = make_student(tmp_path / "a", model="/somewhere/model")
    there = make_student(tmp_path / "b", model="/elsewhere/model", order=-1)
    assert student_fingerprint(here) == student_fingerprint(there)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "base.json"])
def test_a_student_changes_with_each_of_its_parts(tmp_path: Path, name: str) -> None:
    student = make_student(tmp_path / "student")
    before = student_fingerprint(student)
    content = (student / name).read_text()
    (student / name).write_text(content.replace("weights", "others").replace("4", "8").replace("chatml", "own"))
    assert student_fingerprint(student) != before


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "base.json"])
def test_a_student_that_is_not_whole_is_one_line(tmp_path: Path, name: str) -> None:
    student = make_student(tmp_path / "student")
    (student / name).unlink()
    with pytest.raises(ModelError) as error:
        student_fingerprint(student)
    assert "train the student first" in one_line(error)
