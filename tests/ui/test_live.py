"""What the page says of a run: its files as the stages write them, with a mock server in the teacher's place."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.core import console
from distill.engine.mock_server import MockServer
from distill.engine.mock_server.faults import asking, status
from distill.pipeline.runner import run_recipe
from distill.ui import detail, live, runs
from tests.support.run_folder import change, write_run
from tests.ui.page_server import Served, serving

TASKS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    with MockServer(fault=asking("task 3.", status(400, body={"error": {"message": "too rude"}}))) as one:
        yield one


@pytest.fixture(scope="module")
def run(server: MockServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a teacher with a price has answered, but for one task."""
    folder = tmp_path_factory.mktemp("runs")
    tasks = folder / "tasks.txt"
    tasks.write_text("".join(f"This is task {n}.\n" for n in range(TASKS)))
    recipe = {
        "name": "paid",
        "budget_usd": 0.05,
        "teacher": {
            "model": "m", "base_url": server.url, "terms": "none", "price": {"input": 1, "output": 2},
            "sampling": {"max_tokens": 50},
        },
        "collect": {"tasks": str(tasks), "concurrency": 1, "max_failed": 0.5, "test": 0, "budget_usd": 0.02},
        "curate": [{"filter": "length", "min_words": 2}],
    }  # fmt: skip
    return run_recipe(recipe, run_dir=folder / "paid")


@pytest.fixture(scope="module")
def page(run: Path) -> Iterator[Served]:
    with serving(run.parent) as one:
        yield one.enter()


def test_a_finished_run_shows_its_status_its_spend_and_its_last_fault(run: Path, page: Served):
    state = page.get("/api/run", run="paid")
    assert (state["status"], [(one["name"], one["status"]) for one in state["stages"]]) == (
        "done",
        [("collect", "done"), ("curate", "done"), ("report", "done")],
    )
    spend = state["spend"]
    assert (spend["cap"], spend["collect_cap"], 0 < spend["usd"] < 0.02) == (0.05, 0.02, True)
    [listed] = page.get("/api/runs")
    assert listed["spend"] == spend
    assert "too rude" in state["fault"]["text"]
    assert [one["prompt"] for one in state["newest"]] == ["This is task 11.", "This is task 10.", "This is task 9."]
    assert not list(run.glob("journal.sqlite-*"))


def test_stages_of_other_rows_than_there_are_now_are_stale(run: Path, tmp_path: Path):
    folder = Path(shutil.copytree(run, tmp_path / "paid"))
    (folder / "sessions.jsonl").write_text("")
    state = live.state(folder)
    statuses = [(one["name"], one["status"]) for one in state["stages"]]
    assert (state["status"], statuses[:2]) == ("stale", [("collect", "done"), ("curate", "stale")])
    assert runs.RunsFolder(tmp_path).list()[0]["status"] == "stale"


def test_what_is_in_flight_is_not_spent_yet(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "paid")
    with sqlite3.connect(tmp_path / "paid" / "journal.sqlite") as journal:
        journal.execute("UPDATE intents SET outcome = NULL, usd = 0.01 WHERE id = 1")
    journal.close()

    def running(record: dict[str, Any]) -> dict[str, Any]:
        record["stages"]["collect"]["status"] = "running"
        return {**record, "lost": {"collect": {"sends": 1, "usd": 0.002}}}

    change(tmp_path / "paid" / "run.json", running)
    before, spend = (live.state(folder)["spend"] for folder in (run, tmp_path / "paid"))
    assert spend["in_flight"] == 0.01
    assert 0.002 < spend["usd"] == spend["collect"] < before["usd"] + 0.002
    assert before["in_flight"] == 0


def test_a_row_has_its_verdicts_its_lineage_and_the_request_behind_it(page: Served):
    [kept] = page.get("/api/rows", run="paid", file="kept.jsonl", text="task 7.")["rows"]
    row = page.get("/api/row", run="paid", file="kept.jsonl", at=kept["at"])
    assert [(one["rule"], one["keep"]) for one in row["verdicts"]] == [("length", True)]
    assert [one["file"] for one in row["lineage"]["places"]] == ["sessions.jsonl"]
    [request] = row["requests"]
    assert [(one["role"], one["text"]) for one in request["messages"]] == [("user", "This is task 7.")]
    facts = dict(request["facts"])
    assert (facts["stage"], facts["model"], facts["finish"], facts["key"]) == (
        "collect", "m", "stop", json.loads(row["json"])["meta"]["keys"][0],
    )  # fmt: skip


def test_the_page_is_sent_a_run_again_only_when_it_has_changed(run: Path, page: Served):
    page.get("/api/run", run="paid")
    assert page.headers is not None
    mark = page.headers["ETag"]
    assert page.ask("/api/run?run=paid", If_None_Match=mark)[0] == 304
    with (run / "run.log").open("a") as log:
        log.write("2026-11-30T10:00:00+00:00 warning: something odd\n2026-11-30T10:00:01+00:00 a line that is half")
    code, text = page.ask("/api/run?run=paid", If_None_Match=mark)
    assert (code, json.loads(text)["log"][-1]) == (200, "10:00:00 warning: something odd")


@pytest.mark.parametrize(
    ("done", "total", "note"), [(40, 400, "8 in flight, USD 0.0011, last fault: 503"), (3, None, ""), (1e6, 2e6, "")]
)
def test_progress_is_what_the_console_has_logged(tmp_path: Path, done: float, total: float | None, note: str):
    write_run(tmp_path, train=False, compare=False)

    def running(record: dict[str, Any]) -> dict[str, Any]:
        record["stages"]["collect"]["status"] = "running"
        return record

    change(tmp_path / "run.json", running)
    lines = ["collect: 999/999, 9 s", "collect: started"]
    with console.observed(lines.append), console.silenced(), console.progress("collect", total) as bar:
        bar.update(done, note=note)
        bar._speak()
    (tmp_path / "run.log").write_text("".join(f"2026-11-30T10:00:00+00:00 {line}\n" for line in lines))
    state = live.state(tmp_path)
    progress = next(one for one in state["stages"] if one["name"] == "collect")["progress"]
    assert progress.pop("note").endswith(note)
    assert progress == {"title": "collect", "done": done, "total": total}
    assert (state["fault"] or {}).get("text") == ("503" if note else None)


def test_a_loss_curve_of_any_length_is_drawn_with_all_evaluations(tmp_path: Path):
    log = tmp_path / "train_log.jsonl"
    rows: list[dict[str, Any]] = [{"step": n, "steps": 5000, "loss": 1 / n} for n in range(1, 4001)]
    rows[2000:2000] = [{"event": "eval", "step": 2000, "eval_loss": 0.5}, {"step": 2000, "loss": None}]
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 4001, "lo')
    curve = live.loss_curve(log)
    assert curve is not None
    assert (curve["eval"], curve["last"]["step"]) == ([(2000, 0.5)], 4000)
    assert len(curve["train"]) <= live.CURVE_POINTS + 1
    assert curve["train"][-1] == (4000, 1 / 4000)
    assert live.loss_curve(tmp_path / "none.jsonl") is None


def test_a_training_in_progress_shows_its_own_log_and_samples(tmp_path: Path):
    write_run(tmp_path)
    (tmp_path / "student").rename(tmp_path / "student.next")
    sample = {"step": 12, "messages": [{"role": "user", "content": "Why?"}], "student": "So.", "teacher": "Hence."}
    (tmp_path / "student.next" / "samples.jsonl").write_text(f"{json.dumps(sample)}\n" + '{"step": 24, "mess')

    def running(record: dict[str, Any]) -> dict[str, Any]:
        record["stages"]["train"] |= {"status": "running", "started": "2026-03-03T09:00:00+00:00"}
        return record

    change(tmp_path / "run.json", running)
    state = live.state(tmp_path)
    assert state["newest"] == [{"what": "step 12", "prompt": "Why?", "texts": {"student": "So.", "teacher": "Hence."}}]
    progress = next(one for one in state["stages"] if one["name"] == "train")["progress"]
    assert (progress["done"], progress["total"], state["status"]) == (72, 72, "running")
    assert state["headline"].startswith("Of an earlier student: ")


def test_a_row_of_a_run_without_its_journal_is_shown_all_the_same(tmp_path: Path):
    write_run(tmp_path, prompts=2)
    assert detail.detail(tmp_path, "dropped.jsonl", 0)["requests"] == []
    assert set(runs.files(tmp_path)) == {"dropped.jsonl", "answers.jsonl", "student/train_log.jsonl"}
