"""Several processes of `accelerate launch` train as one: same losses, one writer, one voice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from distill.core import assets
from distill.errors import RecipeError
from distill.run.record import read_record
from distill.train.objectives.soft import Soft, SoftOptions
from tests.support import training

pytest.importorskip("torch")
pytestmark = pytest.mark.model

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {"method": "lora", "epochs": 1, "learning_rate": 5e-3, "lora": {"r": 8}, "batch_tokens": 80, "save_steps": 3}
SOFT = {"kind": "soft", "k": 8}
TAUGHT = [replace(session, meta={"teacher": "tiny"}) for session in training.SESSIONS]


def launched(*arguments: str, cwd: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_machines", "1"]
    command = [*launcher, "--multi_gpu", "--num_processes", str(processes), "-m", "distill", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    """A run whose sessions are curated."""
    from distill.core.jsonl import write_rows
    from distill.pipeline.runner import run_recipe

    root = tmp_path_factory.mktemp("processes")
    write_rows(root / "rows.jsonl", TAUGHT)
    recipe = {
        "name": "shared",
        "seed": 1,
        "sources": [{"from": "distill", "path": "rows.jsonl", "licence": "ours"}],
        "curate": [{"filter": "empty"}],
        "student": {"model": tiny, "prune": {"layers": 3}},
        "teacher": {"name": "tiny", "model": tiny, "serve": "transformers", "terms": "ours"},
        "train": {**TRAIN, "objective": SOFT},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run_recipe(root / "recipe.yaml", run_dir=root / "run", stages=["collect", "curate"])


@pytest.fixture(scope="module")
def shared(folder) -> subprocess.CompletedProcess[str]:
    finished = launched("train", str(folder), cwd=folder.parent)
    assert finished.returncode == 0, finished.stderr
    return finished


def test_two_processes_have_the_losses_of_one(folder, shared, tiny, tmp_path):
    """Of soft targets, which the first makes and the other reads."""
    options = training.options(**{**TRAIN, "lora": {"r": 8, "alpha": 32}})
    training.run(
        tmp_path, tiny, sessions=TAUGHT, options=options, teachers={"tiny": tiny}, objective=Soft(SoftOptions(k=8))
    )
    alone = training.losses(tmp_path)
    assert training.losses(folder / "student") == pytest.approx(alone, abs=1e-4)
    assert alone[-1] < alone[0] - 0.2


def test_one_of_them_writes_and_speaks(folder, shared):
    said = [line for line in shared.stderr.splitlines() if line.startswith("train:")]
    assert said[0] == "train: started"
    assert said[-1].startswith("train: done in")
    assert sum(line.startswith("train: done") for line in said) == 1
    assert sum("train: done" in line for line in (folder / "run.log").read_text().splitlines()) == 1
    steps = [json.loads(line)["step"] for line in (folder / "student/train_log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert read_record(folder)["stages"]["train"]["status"] == "done"
    assert not (folder / "student/checkpoints").exists()


def test_other_stages_are_not_shared(folder):
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    finished = subprocess.run(
        [sys.executable, "-m", "distill", "run", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith(
        "error in process 1: a launcher has started 2 processes of distill, but only train"
    )
    assert finished.stderr.count("\n") == 1


def test_4_bit_weights_are_not_divided_among_gpus(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match=r"4-bit weights are not divided .* give accelerate multi_gpu.yaml"):
        training.run(tmp_path, tiny)


def test_the_shipped_configurations_are_read_by_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted(assets.find("recipes/accelerate").glob("*.yaml"))
    kinds = {file.stem: load_config_from_file(str(file)).distributed_type.value for file in files}
    assert kinds == {"deepspeed_zero2": "DEEPSPEED", "fsdp": "FSDP", "multi_gpu": "MULTI_GPU"}
