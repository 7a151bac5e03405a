"""Services that figures are sent to are checked before anything begins, and not imported for it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from distill.errors import MissingPackage
from distill.train.trackers import is_installed, require_trackers
from tests.support import training

pytestmark = pytest.mark.slow


@pytest.mark.skipif(is_installed("trackio"), reason="trackio is installed")
def test_check_says_of_one_that_is_not_installed_what_to_type():
    command = [sys.executable, "-m", "distill", "check", "quickstart", "--set", "train.report_to=[trackio]"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr == (
        "error: train.report_to names trackio, which is not installed; type: pip install trackio, or leave it out "
        "(train_log.jsonl is written in any case)\n"
    )


def test_an_unknown_one_is_refused_by_the_recipe():
    command = [sys.executable, "-m", "distill", "check", "quickstart", "--set", "train.report_to=[mlflow]"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "train.report_to" in finished.stderr


LOADED = """
import sys
from distill.train.trackers import require_trackers
require_trackers(["tensorboard"])
print(sorted({"torch", "tensorboard", "transformers"} & set(sys.modules)))
"""


def test_nothing_is_imported_to_find_out():
    pytest.importorskip("tensorboard")
    finished = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


@pytest.mark.skipif(is_installed("trackio"), reason="trackio is installed")
def test_a_folder_that_a_service_has_left_here_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackage):
        require_trackers(["trackio"])


TRAINED = """
import sys
from pathlib import Path
from tests.support import training
chosen = training.options(epochs=2, batch_tokens=None, batch_rows=8, report_to=[sys.argv[1]])
training.run(Path(sys.argv[2]), sys.argv[3], options=chosen)
"""


def trained(service: str, run: Path, model: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run whose figures go there, in a process of its own: services keep threads and settings."""
    paths = [str(Path(__file__).parents[2]), *sys.path]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    command = [sys.executable, "-c", TRAINED, service, str(run / "student"), model]
    return subprocess.run(command, cwd=run.parent, env=given, capture_output=True, text=True, check=False)


@pytest.mark.model
@pytest.mark.skipif(not is_installed("trackio"), reason="trackio is not installed")
def test_trackio_gets_the_figures_under_the_runs_name(tiny, tmp_path):
    run = tmp_path / "named"
    finished = trained("trackio", run, tiny, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert finished.returncode == 0, finished.stderr
    with sqlite3.connect(tmp_path / "trackio/distill.db") as database:
        rows = database.execute("SELECT run_name, metrics FROM metrics ORDER BY step").fetchall()
    assert {name.startswith("named-") for name, _ in rows} == {True}
    values = [json.loads(metrics) for _, metrics in rows]
    assert [one["train/loss"] for one in values if "train/loss" in one] == pytest.approx(
        training.losses(run / "student")
    )
    assert values[-1]["train/epoch"] == 2


@pytest.mark.model
@pytest.mark.skipif(not is_installed("wandb"), reason="wandb is not installed")
def test_wandb_keeps_its_files_with_the_student(tiny, tmp_path):
    run = tmp_path / "named"
    finished = trained("wandb", run, tiny, WANDB_MODE="offline")
    assert finished.returncode == 0, finished.stderr
    assert len(list(run.glob("student/wandb/offline-run-*/run-*.wandb"))) == 1
    assert not (tmp_path / "wandb").exists()


@pytest.mark.model
@pytest.mark.skipif(not is_installed("wandb"), reason="wandb is not installed")
def test_wandb_without_a_key_is_one_line(tiny, tmp_path):
    finished = trained("wandb", tmp_path / "named", tiny, WANDB_MODE="online", WANDB_API_KEY="", HOME=str(tmp_path))
    assert (
        finished.stderr.strip()
        .splitlines()[-1]
        .startswith("distill.errors.DistillError: train.report_to: wandb does not begin a run (")
    )
