"""Fixtures shared by the tests: one cache for the embedded model, and no network for model hubs."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and lose much on a busy machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored, and so their children


QUICK = "not model and not slow"
LEFT_OUT = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.(model|slow)\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make quick` does not import the files that it leaves out whole: they load torch, in every test process."""
    if config.option.markexpr != QUICK or not collection_path.match("test_*.py"):
        return None
    return bool(LEFT_OUT.search(collection_path.read_text(encoding="utf-8"))) or None


MANY_MODULES = 500
_modules = 0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Leave the objects of freshly loaded packages out of later garbage collections.

    With torch and what is built on it they are a million: a collection takes most of a second, and each training and
    each model that is released ask for several.
    """
    global _modules  # noqa: PLW0603
    if len(sys.modules) > _modules + MANY_MODULES:
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)


@pytest.fixture(autouse=True)
def no_secrets():
    """Secrets of one test are struck out of no other."""
    from distill.core import redaction

    yield
    redaction.forget()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """The folder of a tiny random Llama with the embedded model's tokenizer; it is only read."""
    from tests.support.tiny import save_tiny_model

    return str(save_tiny_model(tmp_path_factory.mktemp("tiny") / "model"))
