"""The Python interface: recipes run and runs are read from a notebook, whose event loop runs already."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, get_origin

import pytest

import distill
from distill.core.jsonl import read_jsonl
from distill.engine.mock_server import MockServer
from distill.engine.mock_server.stand_in import answer
from distill.errors import Interrupted, RecipeError, RunFolderError, StageIncomplete
from distill.pipeline import smoke
from distill.run.scores import Estimate

pytest.importorskip("datasets")
HEAVY = (
    "torch",
    "transformers",
    "openai",
    "datasets",
    "aiohttp",
    "pydantic",
    "numpy",
    "yaml",
    "distill.pipeline.runner",
)
PROMPTS = (
    "Name three rivers.",
    "Why is the sky blue?",
    "Tell a short joke about tea.",
    "What rhymes with moon?",
    "Plan a birthday party.",
    "How do magnets work?",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def server() -> Iterator[MockServer]:
    with MockServer(answer=answer) as server:
        yield server


def values(url: str, tasks: Path) -> dict[str, Any]:
    """A recipe as a notebook writes it: answers to six questions, two of them held out."""
    tasks.write_text("\n".join(PROMPTS), encoding="utf-8")
    return {
        "name": "notes",
        "teacher": {"model": "stand-in", "base_url": url, "terms": "ours", "sampling": {"max_tokens": 32}},
        "collect": {"tasks": tasks, "test": 2},
        "curate": [{"filter": "empty"}, {"filter": "length", "min_words": 3}],
    }


# The names


def test_importing_the_package_loads_nothing_heavy():
    script = f"import sys, distill; dir(distill); print([name for name in {HEAVY!r} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_every_public_name_is_there_and_type_checkers_are_told_the_same():
    stub = ast.parse(Path(distill.__file__).read_text(encoding="utf-8"))
    block = next(one for one in stub.body if isinstance(one, ast.If))
    names = [(one.module, alias) for one in block.body for alias in one.names]
    told = {alias.name: module for module, alias in names if alias.asname == alias.name}
    assert told == distill._PUBLIC
    public = [getattr(distill, name) for name in told]
    assert [one for one in public if get_origin(one) is None and one.__doc__ is None] == []


def test_the_package_says_that_it_is_typed():
    assert Path(distill.__file__).with_name("py.typed").is_file()


def test_waiting_threads_of_a_run_soon_sleep():
    script = """
import os, distill
try:
    distill.run_recipe("none.yaml")
except distill.DistillError:
    print(os.environ["GOMP_SPINCOUNT"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    finished = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert finished.stdout == "1000\n"


# Recipes


def test_a_recipe_is_loaded_from_a_name_a_path_values_and_a_recipe(tmp_path):
    shipped = distill.load_recipe("quickstart")
    (tmp_path / "copy.yaml").write_text(shipped.to_yaml(), encoding="utf-8")
    for source in (tmp_path / "copy.yaml", str(tmp_path / "copy.yaml"), shipped.document(), shipped):
        assert distill.load_recipe(source).document() == shipped.document()


def test_overrides_are_texts_or_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text('{"instruction": "Name three rivers."}\n')
    for overrides in (
        ["train.epochs=5", "expand.seeds=own.jsonl", "curate.near_duplicate.rouge_l=0.5"],
        {"train.epochs": 5, "expand.seeds": Path("own.jsonl"), "curate.near_duplicate.rouge_l": 0.5},
    ):
        loaded = distill.load_recipe("quickstart", overrides=overrides)
        assert (loaded.train.options.epochs, loaded.expand.seeds) == (5, str(tmp_path / "own.jsonl"))
        assert loaded.curate[-1].options.rouge_l == 0.5


def test_values_are_left_as_they_are(tmp_path):
    given = values("http://127.0.0.1:9/v1", tmp_path / "tasks.txt")
    before = repr(given)
    distill.load_recipe(given, overrides={"collect.test": 1})
    assert repr(given) == before


@pytest.mark.parametrize(
    ("source", "overrides", "line"),
    [
        ({"name": "x", "colect": {}}, (), "colect"),
        ("quikstart", (), 'did you mean "quickstart"?'),
        ("quickstart", {"train.epoch": 3}, "epoch"),
        ("quickstart", "train.epochs=3", "expected a list of such, or a mapping"),
    ],
)
def test_a_bad_recipe_is_a_recipe_error(source, overrides, line):
    with pytest.raises(RecipeError, match=re.escape(line)):
        distill.load_recipe(source, overrides=overrides)


# Runs


def test_stages_run_one_by_one_inside_a_running_loop(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = distill.load_recipe(values(server.url, tmp_path / "tasks.txt"))

    async def notebook() -> distill.RunFolder:
        run = distill.collect_sessions(recipe)
        assert run.sessions.num_rows == len(PROMPTS)
        return distill.curate_sessions(run)

    run = asyncio.run(notebook())
    assert run.folder == Path("runs/notes")
    assert (run.kept.num_rows, run.dropped.num_rows, run.test.num_rows) == (4, 0, 2)
    assert next(iter(run.kept)) == next(iter(read_jsonl(Path("runs/notes/kept.jsonl"))))
    assert [row["id"] for row in run.rows("kept", streaming=True)] == run.kept["id"][:]
    assert [*run.rows("failures")] == [*run.rows("dropped", streaming=True)] == []
    assert (run.journal.answers, run.journal.sends, server.count) == (6, 6, 6)
    assert run.journal.completion_tokens == run.stages["collect"]["tokens"]["completion"] > 0


def test_quiet_prints_nothing_and_the_log_has_it_all(server, tmp_path):
    heard = StringIO()
    given = values(server.url, tmp_path / "tasks.txt")
    with redirect_stdout(heard), redirect_stderr(heard):
        run = distill.run_recipe(given, run_dir=tmp_path / "run", stages=["collect"], quiet=True)
    assert heard.getvalue() == ""
    assert "collect: done" in (run.folder / "run.log").read_text()


def test_ctrl_c_inside_a_running_loop_keeps_what_is_finished(tmp_path):
    def interrupt_at_two(number: int) -> float:
        if number == 2:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return 0.1 * number

    given = values("", tmp_path / "tasks.txt")
    given["collect"]["concurrency"] = 3

    async def notebook(url: str) -> distill.RunFolder:
        given["teacher"]["base_url"] = url
        return distill.collect_sessions(given, run_dir=tmp_path / "run")

    with MockServer(answer=answer, latency_seconds=interrupt_at_two) as server:
        with pytest.raises(Interrupted, match="of 6 are finished and kept"):
            asyncio.run(notebook(server.url))
        asked = server.count
        run = distill.open_run(tmp_path / "run")
        assert run.stages["collect"]["status"] == "partial"
        assert run.sessions.num_rows == run.journal.answers == asked < 6
        assert asyncio.run(notebook(server.url)).sessions.num_rows == 6
        assert server.count == 6


INTERRUPTING = """
import signal

from distill import recipe
from distill.types import Verdict


class Interrupting:
    class Options(recipe.BaseOptions):
        pass

    scope = "row"

    def __init__(self, options):
        self.options = options

    def measure(self, session):
        signal.raise_signal(signal.SIGINT)

    def decide(self, value):
        return Verdict(rule="interrupting", keep=True, reason="ok")
"""


def test_ctrl_c_in_a_stage_that_asks_nobody_is_an_error_of_ours_too(server, tmp_path, monkeypatch):
    (tmp_path / "interrupting.py").write_text(INTERRUPTING)
    monkeypatch.syspath_prepend(tmp_path)
    given = values(server.url, tmp_path / "tasks.txt")
    given["curate"] = [{"filter": "interrupting:Interrupting"}]

    async def notebook() -> None:
        distill.run_recipe(given, run_dir=tmp_path / "run", allow_parts=["interrupting"])

    with pytest.raises(Interrupted, match="what was finished is kept"):
        asyncio.run(notebook())
    curate = distill.open_run(tmp_path / "run").stages["curate"]
    assert (curate["status"], curate["detail"]) == ("failed", "interrupted; run the same command again to go on")


def test_a_stage_before_its_time_says_what_is_missing(server, tmp_path):
    given = values(server.url, tmp_path / "tasks.txt")
    with pytest.raises(StageIncomplete, match="`curate` needs a finished `collect`"):
        distill.curate_sessions(given, run_dir=tmp_path / "run")
    run = distill.open_run(tmp_path / "run")
    for member, stage in (("sessions", "collect"), ("kept", "curate"), ("comparison", "compare"), ("student", "train")):
        with pytest.raises(RunFolderError, match=f"run its stage `{stage}` first"):
            getattr(run, member)


def test_what_is_no_run_is_not_opened(tmp_path):
    with pytest.raises(RunFolderError, match="is no run folder"):
        distill.open_run(tmp_path)


def test_damaged_rows_are_one_error(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "x"}')
    (tmp_path / "kept.jsonl").write_text('{"id": "a"}\n{"id": \n')
    with pytest.raises(RunFolderError, match=r"kept\.jsonl cannot be read"):
        distill.open_run(tmp_path).rows("kept")


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")  # of the training packages, on a model this small
def test_a_whole_run_inside_a_running_loop_is_read_back(server, tmp_path):
    given = values(server.url, tmp_path / "tasks.txt") | {
        "student": {"model": str(smoke.tiny_model())},
        "train": {"method": "qlora", "epochs": 1, "batch_rows": 2, "max_length": 256, "lora": {"r": 4}},
        "compare": {"metrics": ["likelihood", "overlap"], "sampling": {"max_tokens": 8}},
    }

    async def notebook() -> distill.RunFolder:
        return distill.run_recipe(given, run_dir=tmp_path / "run", quiet=True)

    run = asyncio.run(notebook())
    assert {name: stage["status"] for name, stage in run.stages.items()} == dict.fromkeys(
        ("collect", "curate", "train", "compare", "report"), "done"
    )
    assert (run.name, run.recipe.name) == ("notes", "notes")
    assert run.train_log["step"] == [1, 2]
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert (run.comparison.headline, run.comparison.prompts) == (scores["headline"], 2)
    assert run.comparison.metrics["rouge_l"].by["student"] == Estimate(**scores["metrics"]["rouge_l"]["by"]["student"])
    assert [row["id"] for row in run.answers] == run.test["id"][:]
    assert run.report.read_text(encoding="utf-8").startswith("<!")
    model, tokenizer = run.load_student()
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer) > 0
    assert tokenizer.chat_template
