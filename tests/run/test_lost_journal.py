"""A journal that has lost sends which run.json counts: the run stops, or goes on with what was spent still spent."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import distill as api
from distill.engine.journal.store import Journal
from distill.engine.mock_server import MockServer
from distill.errors import RunFolderError
from tests.pipeline.test_runs import PRICE, distill, record, sessions, teacher, write
from tests.support.cli import only_line
from tests.support.engine.batch_server import BatchServer

pytestmark = pytest.mark.slow

USD = 20 * (2 * 1.0 + 4 * 1000.0) / 1e6
"""Of 20 questions of two words, each answered with four."""


def journal(folder: Path) -> Path:
    return folder / "runs" / "one" / "journal.sqlite"


def finished(folder: Path, server: MockServer, **more: object) -> None:
    """A run that has bought 20 answers; beside it its journal after 8."""
    write(folder, teacher(server.url, price=PRICE), tasks=8, **more)
    assert distill(folder, "run", "one.yaml").returncode == 0
    shutil.copy(journal(folder), folder / "older.sqlite")
    write(folder, teacher(server.url, price=PRICE), tasks=20, **more)
    assert distill(folder, "run", "one.yaml", "--yes").returncode == 0
    assert server.count == 20


def deleted(folder: Path) -> None:
    journal(folder).unlink()


def emptied(folder: Path) -> None:
    journal(folder).write_bytes(b"")


def older(folder: Path) -> None:
    shutil.copy(folder / "older.sqlite", journal(folder))


def new(folder: Path) -> None:
    deleted(folder)
    with Journal.open(journal(folder)):
        pass


def of_another_stage(folder: Path) -> None:
    with sqlite3.connect(journal(folder)) as connection:
        connection.execute("UPDATE intents SET stage = 'expand'")
    connection.close()


LOSSES = [(deleted, 0), (emptied, 0), (older, 8), (new, 0), (of_another_stage, 0)]


def assert_stopped(folder: Path, *command: str, left: int = 0) -> None:
    stopped = distill(folder, *command)
    assert stopped.returncode == 1
    line = only_line(stopped)
    assert f"has {left} of the 20 sends of collect" in line
    assert f"USD {USD * (20 - left) / 20:.4f}" in line
    assert "distill run runs/one --new-journal" in line


@pytest.mark.parametrize(("lose", "left"), LOSSES)
def test_a_journal_with_fewer_sends_than_run_json_counts_stops_the_run(
    tmp_path: Path, lose: Callable[[Path], None], left: int
) -> None:
    with MockServer() as server:
        finished(tmp_path, server)
        lose(tmp_path)
        for _ in range(2):
            assert_stopped(tmp_path, "run", "one.yaml", left=left)
        assert server.count == 20


def test_every_command_that_writes_in_the_journal_stops(tmp_path: Path) -> None:
    with MockServer() as server:
        finished(tmp_path, server)
        deleted(tmp_path)
        for options in (["--set", "teacher.sampling.max_tokens=11"], ["--cancel-batches"]):
            assert_stopped(tmp_path, "collect", "runs/one", *options)
        assert_stopped(tmp_path, "clean", "runs/one")
        assert server.count == 20


@pytest.mark.parametrize(("lose", "left"), LOSSES[:3])
def test_with_new_journal_it_goes_on_and_the_budget_counts_what_was_spent(
    tmp_path: Path, lose: Callable[[Path], None], left: int
) -> None:
    with MockServer() as server:
        finished(tmp_path, server, budget_usd=1.5 * USD)
        lose(tmp_path)
        (tmp_path / "runs/one/sessions.jsonl").unlink()
        stopped = distill(tmp_path, "run", "one.yaml", "--new-journal")
        assert stopped.returncode == 3, stopped.stderr
        assert "the budget of" in stopped.stderr
        bought = server.count - 20
        assert 0 < bought < 12
        assert len(sessions(tmp_path)) == left + bought
        spent = USD * server.count / 20
        assert record(tmp_path)["stages"]["collect"]["usd"] == pytest.approx(spent)
        assert f"USD {spent:.4f}" in distill(tmp_path, "show", "runs/one").stdout
        assert distill(tmp_path, "run", "one.yaml").returncode == 3
        assert server.count == 20 + bought
        more = distill(tmp_path, "run", "one.yaml", "--set", f"budget_usd={3 * USD}")
        assert more.returncode == 0, more.stderr
        assert server.count == 20 + 20 - left
        deleted(tmp_path)
        assert f"has 0 of the {server.count} sends" in distill(tmp_path, "run", "one.yaml").stderr


def test_a_stages_own_budget_counts_what_was_spent_too(tmp_path: Path) -> None:
    with MockServer() as server:
        finished(tmp_path, server, collect={"budget_usd": 1.2 * USD})
        deleted(tmp_path)
        (tmp_path / "runs/one/sessions.jsonl").unlink()
        assert distill(tmp_path, "collect", "runs/one", "--new-journal").returncode == 3
        assert server.count - 20 <= 4


def test_the_python_interface_stops_and_goes_on_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "sk-a-secret-key-of-ours")
    with MockServer() as server:
        finished(tmp_path, server)
        deleted(tmp_path)
        (tmp_path / "runs/one/sessions.jsonl").unlink()
        with pytest.raises(RunFolderError, match="--new-journal"):
            api.collect_sessions(tmp_path / "runs/one", quiet=True)
        assert server.count == 20
        api.collect_sessions(tmp_path / "runs/one", quiet=True, new_journal=True)
        assert server.count == 40


def test_a_run_folder_of_before_is_held_against_the_costs_of_its_stages(tmp_path: Path) -> None:
    with MockServer() as server:
        finished(tmp_path, server)
        path = tmp_path / "runs/one/run.json"
        before = {key: value for key, value in record(tmp_path).items() if key != "sent"}
        path.write_text(json.dumps(before))
        assert distill(tmp_path, "run", "one.yaml").returncode == 0
        path.write_text(json.dumps(before))
        emptied(tmp_path)
        assert "has 0 of the 20 sends of collect" in distill(tmp_path, "run", "one.yaml").stderr
        before["stages"]["collect"] |= {"costs": []}
        path.write_text(json.dumps(before))
        assert distill(tmp_path, "run", "one.yaml").returncode == 0


def test_a_journal_with_more_than_run_json_counts_goes_on(tmp_path: Path) -> None:
    with MockServer() as server:
        finished(tmp_path, server)
        (tmp_path / "runs/one/run.json").unlink()
        assert distill(tmp_path, "run", "one.yaml").returncode == 0
        assert server.count == 20
        assert record(tmp_path)["sent"]["collect"]["sends"] == 20


def test_a_stage_that_is_done_again_counts_all_that_was_ever_sent(tmp_path: Path) -> None:
    with MockServer() as server:
        finished(tmp_path, server)
        other = ("--set", "teacher.sampling.max_tokens=11")
        for options, sends in ((other, 40), ((), 40), (other, 40)):
            assert distill(tmp_path, "run", "one.yaml", "--yes", *options).returncode == 0
            assert (server.count, record(tmp_path)["sent"]["collect"]["sends"]) == (sends, sends)
        deleted(tmp_path)
        assert "has 0 of the 40 sends" in distill(tmp_path, "run", "one.yaml").stderr


def test_questions_of_a_batch_are_sends(tmp_path: Path) -> None:
    with BatchServer() as server:
        write(tmp_path, teacher(server.url, price=PRICE), collect={"mode": "batch"})
        for _ in range(2):  # without half a minute until the second look
            assert distill(tmp_path, "run", "one.yaml", "--no-wait").returncode == 0
        assert record(tmp_path)["stages"]["collect"]["status"] == "done"
        assert record(tmp_path)["sent"]["collect"]["sends"] == 20
        assert distill(tmp_path, "run", "one.yaml").returncode == 0
        deleted(tmp_path)
        assert "has 0 of the 20 sends" in distill(tmp_path, "run", "one.yaml").stderr


def test_a_killed_run_goes_on_and_one_whose_write_ahead_log_was_removed_as_well_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-a-secret-key-of-ours")
    with MockServer(latency_seconds=0.5) as server:
        write(tmp_path, teacher(server.url, price=PRICE), tasks=200)
        command = [sys.executable, "-m", "distill", "run", "one.yaml"]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
            while not (counted := _sends(tmp_path)):
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
        asked = server.count
        assert 0 < counted <= asked
        shutil.copytree(tmp_path / "runs/one", tmp_path / "runs/two")
        journal(tmp_path).with_name("journal.sqlite-wal").unlink()
        stopped = distill(tmp_path, "run", "one.yaml")
        assert (stopped.returncode, server.count) == (1, asked), stopped.stderr
        assert f"of the {counted} sends" in stopped.stderr
    with MockServer() as again:
        options = ("--set", f"teacher.base_url={again.url}", "--run-dir", "runs/two")
        assert distill(tmp_path, "run", "one.yaml", *options).returncode == 0


def _sends(folder: Path) -> int:
    path = folder / "runs/one/run.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return int(found.get("sent", {}).get("collect", {}).get("sends", 0))
