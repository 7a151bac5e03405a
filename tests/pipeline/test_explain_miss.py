"""Why a run would ask again, of every stage that asks, on a run through all of them with a tiny random student."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.engine.mock_server import MockServer, question
from distill.pipeline.explain_miss import misses
from distill.pipeline.runner import run_recipe
from tests.support.tiny import save_tiny_model

pytestmark = pytest.mark.model

THINGS = ("rivers", "kites", "soups", "clocks", "owls", "songs", "hats", "tides", "bees", "tents", "tools", "coins")
NOTHING = ["nothing would be asked again: the journal has every answer"]


def answer(body: Mapping[str, Any]) -> str:
    asked = question(body)
    if "Score" in asked:
        return "A plain answer.\nScore: 7"
    return f"Well, {hashlib.sha256(asked.encode()).hexdigest()[:12]} is what one says of them."


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[tuple[Path, MockServer]]:
    folder = tmp_path_factory.mktemp("explain")
    save_tiny_model(folder / "model", layers=2)
    tasks = [{"id": f"t{number:02}", "instruction": f"What of {thing}?"} for number, thing in enumerate(THINGS)]
    (folder / "tasks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in tasks))
    with MockServer(answer=answer) as server:
        recipe = {
            "name": "explained",
            "teacher": {"model": "m", "base_url": server.url, "terms": "ours", "sampling": {"max_tokens": 20}},
            "collect": {"tasks": "tasks.jsonl", "test": 2},
            "curate": [{"filter": "judge", "min_score": 5}, {"filter": "perplexity"}, {"filter": "ifd"}],
            "student": {"model": "./model", "template": "chatml"},
            "train": {"method": "qlora", "epochs": 1, "lora": {"r": 2, "alpha": 4}, "max_length": 64},
            "compare": {"metrics": ["likelihood", "overlap"]},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        yield run_recipe(folder / "recipe.yaml", run_dir=folder / "run"), server


def explained(run: tuple[Path, MockServer], *changes: str, **options: Any) -> list[str]:
    """What is said, and that nobody was asked and no file of the run touched."""
    folder, server = run
    before = server.count, {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".jsonl", ".json")}
    told = misses(folder, overrides=changes, **options)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".jsonl", ".json")}
    assert (server.count, after) == before
    return told


def test_a_finished_run_would_ask_nothing(run):
    assert explained(run) == NOTHING


def test_a_judge_that_is_asked_otherwise_is_told_by_rule_and_session(run):
    told = explained(run, "curate.judge.highest=5", limit=2)
    assert told[0].startswith("curate judge t00: differs from the nearest journalled question")
    assert told[1].startswith("  request.messages[0].content: ")
    assert [line[:16] for line in told if line.startswith("curate")] == ["curate judge t00", "curate judge t01"]


def test_a_threshold_that_asks_nothing_new_is_no_miss(run):
    assert explained(run, "curate.judge.min_score=8") == NOTHING


def test_likelihoods_under_another_template_are_asked_again(run):
    told = explained(run, "student.template=alpaca", limit=1)
    assert told[0].startswith("curate perplexity t00: differs from the nearest")
    assert told[1].startswith("  endpoint.fingerprint: ")


def test_compare_is_told_by_model_and_prompt(run):
    told = explained(run, "compare.sampling={temperature: 0.3}", limit=9)
    assert {line.split()[1] for line in told if line.startswith("compare")} == {"teacher"}
    assert "  request.sampling.temperature: 0.3 was its default" in told


def test_another_seed_asks_base_and_student_again(run):
    told = explained(run, "compare.sampling={max_tokens: 20}", "seed=8", limit=9)
    assert told[0].startswith("compare base ")
    assert "  request.sampling.seed: 8 was 7" in told


def test_only_the_named_task_is_looked_at(run):
    told = explained(run, "curate.judge.highest=5", task="t07", limit=9)
    assert [line for line in told if not line.startswith("  ")] == [told[0]]
    assert told[0].startswith("curate judge t07: ")
