"""`train --plan` and `train --show-masks` on a run folder and on a recipe: they show, and write nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.core.jsonl import write_rows
from distill.errors import RecipeError, StageIncomplete
from distill.pipeline import training_plan
from distill.train.memory import SMOLLM2, estimate, usual_pass
from distill.train.options import TrainOptions
from tests.support.cli import here
from tests.support.training import SESSIONS

pytestmark = pytest.mark.model

RECIPE = """
name: small
sources: [{from: distill, path: rows.jsonl}]
curate: []
student: {model: smollm2, template: chatml}
train: {max_length: 64}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", SESSIONS[:3])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_masks_are_shown_and_nothing_is_written(folder):
    (folder / "run").mkdir()
    write_rows(folder / "run/kept.jsonl", SESSIONS[:3])
    finished = here(folder, "train", "recipe.yaml", "--run-dir", "run", "--show-masks", "2")
    assert finished.returncode == 0
    assert finished.stdout == (
        "session s0: 8 of 21 tokens are trained (in ⟦ ⟧)\n"
        "  <|im_start|>user\n  Number 0?<|im_end|>\n  <|im_start|>assistant\n  ⟦0 is red, I say.<|im_end|>⟧\n"
        "session s1: 8 of 21 tokens are trained (in ⟦ ⟧)\n"
        "  <|im_start|>user\n  Number 1?<|im_end|>\n  <|im_start|>assistant\n  ⟦1 is blue, I say.<|im_end|>⟧\n"
    )
    assert finished.stderr == "3 rows have passed the mask gate\n"
    assert [path.name for path in (folder / "run").iterdir()] == ["kept.jsonl"]


@pytest.mark.parametrize("show", [training_plan.plan, lambda path, **given: training_plan.show_masks(path, 1, **given)])
def test_before_curate_it_is_said_what_to_run_first(folder, show):
    with pytest.raises(StageIncomplete) as caught:
        show(folder / "recipe.yaml", run_dir=folder / "run")
    assert str(caught.value) == (
        f"{folder}/run has no kept.jsonl, the rows to train on; type: distill run {folder}/recipe.yaml --run-dir "
        f"{folder}/run --stages collect,curate"
    )


def test_a_recipe_that_trains_nothing_is_refused(folder):
    (folder / "recipe.yaml").write_text(RECIPE.partition("student:")[0])
    with pytest.raises(RecipeError, match="the recipe has no section `train`; add one, with `student`"):
        training_plan.plan(folder / "recipe.yaml")


def test_check_forecasts_the_memory_of_training_by_the_same_formula_without_torch(folder):
    code = (
        "import sys; from distill.cli.main import _code; _code(['check', 'recipe.yaml', '--set', 'train.method=lora']);"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    line, exports, loaded = finished.stdout.splitlines()[-3:]
    assert exports == "exports: adapter, merged, gguf, ollama"
    options = TrainOptions(method="lora", max_length=64)
    gpu, cpu = (estimate(SMOLLM2, options, usual_pass(options, device, 30)).total / 1e9 for device in ("cuda", "cpu"))
    assert line == (
        "train: lora at a learning rate of 0.0005 takes about "
        f"{gpu:.1f} GB on a GPU (passes of 4,096 tokens), {cpu:.1f} GB on a CPU (of 512); "
        "`distill train --plan` measures it"
    )
    assert loaded == "[]"
