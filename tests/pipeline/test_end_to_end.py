"""The whole road on a tiny random model: real tokenizer, real server, real NF4, real journal, killed and continued."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.tiny import save_tiny_model

pytestmark = pytest.mark.model

PROMPTS = (
    "Name three rivers in Europe.", "Why is the sky blue?", "Tell a short joke about tea.", "What rhymes with moon?",
    "Plan a birthday party for twins.", "How do magnets work?", "Suggest a name for my cat.", "Who wrote Faust?",
    "Count from one to five.", "Describe the smell of rain.", "Is a tomato a fruit?", "Give me two synonyms of happy.",
    "Translate good morning into French.", "Where do penguins live?", "Explain gravity to a child.",
    "Write a haiku on winter.", "Which planet is largest?", "Convert ten miles to kilometres.", "Thank a neighbour.",
    "List four kitchen tools.", "When was the printing press invented?", "Compare cats and dogs.",
    "Invent a slogan for a bakery.", "Sum up the story of Icarus.",
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe whose teacher is a random model of four layers, and whose student has three of them."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder / "model", layers=4)
    (folder / "tasks.txt").write_text("\n".join(PROMPTS) + "\n")
    (folder / "recipe.yaml").write_text(
        """
name: tiny
teacher:
  model: ./model
  serve: transformers
  terms: "made here"
  sampling: {temperature: 0.7, top_p: 0.9, max_tokens: 12}
collect: {tasks: tasks.txt, concurrency: 4, test: 6}
curate:
  - {filter: empty}
  - {filter: near_duplicate, rouge_l: 0.9}
student: {model: ./model, prune: {layers: 3}, template: chatml}
train: {method: qlora, epochs: 3, learning_rate: 1e-3, lora: {r: 4, alpha: 8}, max_length: 96}
compare: {metrics: [likelihood, overlap, style]}
"""
    )
    return folder / "recipe.yaml"


def start(recipe: Path, run_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distill", "run", str(recipe), "--run-dir", str(run_dir), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return out, error


def stages(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "run.json").read_text())["stages"]


def keys(folder: Path, table: str) -> list[str]:
    """The keys of a table of the journal, in the order of writing; none while there is no such table yet."""
    path = folder / "journal.sqlite"
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        try:
            return [key for (key,) in journal.execute(f"SELECT key FROM {table} ORDER BY rowid")]
        except sqlite3.OperationalError:
            return []


def sends(folder: Path) -> list[str]:
    return keys(folder, "intents")


def answers(folder: Path) -> set[str]:
    return set(keys(folder, "answers"))


def killed_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """SIGKILL the run as soon as it is where the test wants it."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if ready():
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return
        time.sleep(0.05)
    out, error = process.communicate()
    raise AssertionError(f"the run was never there: {out}\n{error}")


def status(folder: Path, stage: str) -> str | None:
    path = folder / "run.json"
    return stages(folder).get(stage, {}).get("status") if path.exists() else None


@pytest.fixture(scope="module")
def resumed(recipe, tmp_path_factory) -> tuple[Path, list[tuple[set[str], list[str]]]]:
    """A run killed in collect, train and compare, and then completed.

    With it, for each time that it was started: the answers that were there, and the sends since.
    """
    folder = tmp_path_factory.mktemp("run") / "tiny"

    def mid_collect() -> bool:
        return len(answers(folder)) >= 5

    def mid_train() -> bool:
        log = folder / "student" / "train_log.jsonl"
        logs = [log] if log.exists() else list(folder.rglob("train_log.jsonl"))
        return status(folder, "train") == "running" and any(path.read_text().count("\n") >= 1 for path in logs)

    def mid_compare() -> bool:
        return status(folder, "compare") == "running" and len(answers(folder)) > len(answered) + 2

    answered: set[str] = set()
    asked = 0
    starts = []
    for ready in (mid_collect, mid_train, mid_compare, None):
        process = start(recipe, folder)
        if ready is not None:
            killed_when(process, ready)
        else:
            out, _ = finish(process)
            assert str(folder / "report.html") in out
        starts.append((answered, sends(folder)[asked:]))
        answered, asked = answers(folder), len(sends(folder))
    return folder, starts


@pytest.fixture(scope="module")
def finished(resumed) -> Path:
    return resumed[0]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_stage_is_done_with_its_time_and_memory(finished):
    found = stages(finished)
    assert {name: stage["status"] for name, stage in found.items()} == dict.fromkeys(
        ("collect", "curate", "train", "compare", "report"), "done"
    )
    assert all(stage["seconds"] > 0 and stage["peak_memory_bytes"] > 0 for stage in found.values())


def test_every_session_is_kept_dropped_or_held_out_and_none_twice(finished):
    names = [row["id"] for row in rows(finished / "sessions.jsonl")]
    split = [row["id"] for part in ("kept", "dropped", "test") for row in rows(finished / f"{part}.jsonl")]
    assert len(names) == len(PROMPTS)
    assert sorted(split) == sorted(names)
    assert len(rows(finished / "test.jsonl")) == 6


def test_all_four_answer_every_held_out_prompt(finished):
    answered = [set(row["answers"]) for row in rows(finished / "answers.jsonl")]
    assert answered == [{"base", "student", "teacher", "teacher_again"}] * 6


def test_no_metric_is_not_a_number(finished):
    text = (finished / "scores.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert set(json.loads(text)["metrics"]) >= {"nll_per_byte", "rouge_l", "length_ratio", "stopped", "repetition"}


def test_the_students_card_says_what_the_comparison_found(finished):
    from distill.run.cards import plain

    card = (finished / "student" / "README.md").read_text()
    headline = json.loads((finished / "scores.json").read_text())["headline"]
    assert plain(headline, longest=2_000) in card
    assert "Not compared" not in card


def test_the_server_of_the_teacher_is_gone(finished):
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert [line for line in commands.splitlines() if " serve " in line and str(finished.parent) in line] == []


def test_a_second_run_does_nothing_in_under_two_seconds(recipe, finished):
    before = (finished / "run.json").read_bytes()
    started = time.monotonic()
    _, error = finish(start(recipe, finished))
    assert time.monotonic() - started < 2.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert "nothing to do" in error
    assert (finished / "run.json").read_bytes() == before


def test_the_resolved_recipe_alone_repeats_the_run(finished):
    _, error = finish(start(finished / "recipe.yaml", finished))
    assert "nothing to do" in error


def test_another_threshold_runs_again_from_curate_without_a_teacher_call(recipe, finished, tmp_path):
    folder = tmp_path / "again"
    subprocess.run(["cp", "-r", str(finished), str(folder)], check=True)
    before = sends(folder)
    _, error = finish(start(recipe, folder, "--set", "curate.near_duplicate.rouge_l=0.95", "--stages", "curate,report"))
    assert "collect: started" not in error
    assert "collect runs again" not in error
    assert "curate runs again: curate.near_duplicate.rouge_l" in error
    assert sends(folder) == before


def test_killed_in_collect_train_and_compare_it_completes_and_asks_nothing_twice(resumed):
    folder, starts = resumed
    assert [answered.isdisjoint(again) for answered, again in starts] == [True] * 4
    assert {stage["status"] for stage in stages(folder).values()} == {"done"}
