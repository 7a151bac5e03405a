"""A package index in a folder, for what is fetched by pip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.models.wheels import make_wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all pip knows of, beside an empty cache."""
    folder = tmp_path / "index"
    make_wheel(folder)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return folder
