"""An editor's YAML language server completes and checks a recipe that `distill init` wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.pipeline.starter import init
from tests.yaml_language_server.client import LanguageServer

pytestmark = pytest.mark.slow

SERVER = Path(__file__).parents[1] / "yaml_language_server"
PROGRAM = SERVER / "node_modules" / ".bin" / "yaml-language-server"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("recipes")
    init(folder, name="mine")
    return folder


@pytest.fixture(scope="module")
def editor(folder) -> Iterator[LanguageServer]:
    if shutil.which("node") is None or not PROGRAM.exists():
        if os.environ.get("REQUIRE_YAML_LANGUAGE_SERVER") == "1":
            pytest.fail(f"REQUIRE_YAML_LANGUAGE_SERVER=1 but it is not there; npm ci --prefix {SERVER}")
        pytest.skip(f"recipes have NOT been read by a language server: npm ci --prefix {SERVER}")
    with LanguageServer([str(PROGRAM), "--stdio"], folder) as server:
        yield server


def test_a_sound_recipe_has_no_fault(editor, folder):
    assert editor.open(folder / "mine.yaml") == []


def changed(folder: Path, name: str, old: str, new: str) -> tuple[Path, list[str]]:
    """A copy of the recipe with one change, and its lines."""
    text = (folder / "mine.yaml").read_text()
    assert text.count(old) == 1
    file = folder / f"{name}.yaml"
    file.write_text(text.replace(old, new))
    return file, file.read_text().splitlines()


def test_a_typo_and_a_value_out_of_range_are_flagged(editor, folder):
    file, _ = changed(folder, "typo", "\ntrain:\n", "\ntrain:\n  epoch: 3\n  warmup: 2\n")
    assert sorted(editor.open(file)) == ["Property epoch is not allowed.", "Value is above the exclusive maximum of 1."]


def test_a_key_is_completed_with_what_it_does(editor, folder):
    file, lines = changed(folder, "key", "\ntrain:\n", "\ntrain:\n  neft\n")
    editor.open(file)
    items = editor.at("completion", file, lines.index("  neft"), 6)["items"]
    [documentation] = [one["documentation"] for one in items if one["label"] == "neftune_alpha"]
    assert "NEFTune" in documentation


def test_the_options_of_a_filter_are_its_own(editor, folder):
    file, lines = changed(folder, "option", "\ncurate:\n", "\ncurate:\n  - filter: minhash\n    \n")
    editor.open(file)
    labels = {one["label"] for one in editor.at("completion", file, lines.index("    "), 4)["items"]}
    assert labels == {"jaccard", "shingle", "size", "on"}


def test_the_names_of_filters_are_completed(editor, folder):
    file, lines = changed(folder, "name", "\ncurate:\n", "\ncurate:\n  - filter: \n")
    editor.open(file)
    labels = {one["label"] for one in editor.at("completion", file, lines.index("  - filter: "), 12)["items"]}
    assert {"length", "near_duplicate", "refusal"} <= labels
