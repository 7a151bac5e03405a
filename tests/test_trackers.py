"""Services that figures are sent to are checked before anything begins, and not imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distill.errors import MissingPackage
from distill.student.trackers import require_trackers


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
from distill.student.trackers import require_trackers
require_trackers(["tensorboard"])
print(sorted({"torch", "tensorboard", "transformers"} & set(sys.modules)))
"""


def test_nothing_is_imported_to_find_out():
    pytest.importorskip("tensorboard")
    finished = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_a_folder_that_a_service_has_left_here_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackage):
        require_trackers(["trackio"])
