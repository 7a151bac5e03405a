"""Students trained once for every test of an export."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.formats.export import export
from tests.support.exporting import save_loud_model, write_trained_run


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    return save_loud_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="session")
def run_folder(base, tmp_path_factory) -> Path:
    """A run whose student is an adapter over a pruned base in 4 bits."""
    return write_trained_run(tmp_path_factory.mktemp("runs") / "tiny", base, layers=2)


@pytest.fixture(scope="session")
def whole_run(base, tmp_path_factory) -> Path:
    """A run whose student was trained whole, and knows its answers by heart."""
    return write_trained_run(tmp_path_factory.mktemp("runs") / "whole", base, method="full", learning_rate=5e-3)


@pytest.fixture(scope="session")
def exported(run_folder, whole_run, tmp_path_factory) -> dict[str, Path]:
    """One export of each form; `whole` is the merged one of the student that was trained whole."""
    out = tmp_path_factory.mktemp("exports")
    for form in ("adapter", "merged", "ollama"):
        export(run_folder, to=form, out=out / form)
    export(whole_run, to="merged", out=out / "whole")
    return {name: out / name for name in ("adapter", "merged", "ollama", "whole")}
