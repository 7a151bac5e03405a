"""The page of the four routes and the notebooks: all that can run in seconds runs, and says what it is told to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.engine.mock_server import MockServer
from distill.engine.mock_server.stand_in import answer
from distill.pipeline import smoke
from tests.project.notebooks import cells, printed, shown
from tests.support.documents import ADDRESS, ROOT, matches, run_page

NOTEBOOKS = sorted((ROOT / "recipes" / "notebooks").glob("*.ipynb"))


@pytest.mark.model
def test_the_routes_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_KEY", "a-key-of-the-stand-in")
    with MockServer(answer=answer) as server:
        assert run_page(ROOT / "recipes" / "ROUTES.md", tmp_path, server.url) == 4
    assert {path.name for path in tmp_path.iterdir()} >= {"data", "runs", "mine.yaml", "my.yaml"}


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")  # of the training packages, on a model this small
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_shows(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = json.dumps({"model": str(smoke.tiny_model())})[1:-1]
    with MockServer(answer=answer) as server:
        replaced = {ADDRESS: server.url, '"student": {"model": "smollm2"': f'"student": {{{tiny}'}
        heard = list(printed(path, replaced))
    assert len(NOTEBOOKS) == 2
    for cell, text in zip(cells(path), heard, strict=True):
        varies = "varies" in cell["metadata"].get("tags", ())  # with the model's texts
        assert (len(text.splitlines()) == len(shown(cell).splitlines())) if varies else matches(shown(cell), text), text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_saved_whole_and_after_its_last_change(path):
    numbers = [cell["execution_count"] for cell in cells(path)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert path.stat().st_size < 20_000
    assert str(Path.home()) not in path.read_text("utf-8")
