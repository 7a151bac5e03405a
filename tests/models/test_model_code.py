"""Code that comes with a model is never run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.models.loaded_process import LoadedProcess
from tests.support.models.model_folders import change

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21


TAMPERED = "from pathlib import Path\nPath({mark!r}).touch()\n"


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


@pytest.fixture
def model(tiny: str, tmp_path: Path) -> Path:
    """A whole model's folder of this test's own."""
    return Path(shutil.copytree(tiny, tmp_path / "whole"))


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
    said = folder.parent / "said"
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes, said.open("wb") as log:
        streams = {"stdin": yes.stdout.fileno(), "stdout": log.fileno(), "stderr": log.fileno()}
        server = LoadedProcess(["serve", str(folder), "--port", "0"], **streams, env=environment)
        while server.poll() is None and "listening" not in said.read_text():
            time.sleep(0.05)
        server.terminate()
        server.wait(20)
        yes.kill()
    return said.read_text()


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
    lines = served(model, tmp_path / "modules")
    assert lines.count("\n") == 1
    assert "needs its own Python code (auto_map in config.json)" in lines
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
