"""Memory on a GPU is asked to grow in place before torch begins, unless the user has said something else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from distill.core.processes import NAMES, OTHERS, grow_in_place


def test_every_version_of_torch_is_asked():
    environment: dict[str, str] = {}
    grow_in_place(environment)
    assert environment == dict.fromkeys(NAMES, "expandable_segments:True")


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_settings_of_the_user_stand(name):
    environment = {name: "max_split_size_mb:64"}
    grow_in_place(environment)
    assert environment == {name: "max_split_size_mb:64"}


STAGE = """
import os, sys
from distill.train import stage
asked = []
sys.meta_path.insert(0, type("Watch", (), {"find_spec": staticmethod(
    lambda name, path=None, target=None: asked.append((name, os.environ.get("PYTORCH_ALLOC_CONF"))))}))
with stage.training_packages():
    import torch
print(next(setting for name, setting in asked if name == "torch"))
"""


def test_training_asks_before_torch_is_loaded():
    environment = {name: value for name, value in os.environ.items() if name not in (*NAMES, *OTHERS)}
    ended = subprocess.run([sys.executable, "-c", STAGE], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "expandable_segments:True\n"
