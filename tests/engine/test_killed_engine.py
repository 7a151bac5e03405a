"""The end of a process: killed and interrupted runs go on and buy nothing twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.engine.journal.store import Journal
from distill.engine.mock_server import (
    HANG,
    MockServer,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


CHILD = """
import sys
from pathlib import Path
from distill.engine import EngineStopped
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.policy import BoundEndpoint
from distill.engine.providers.openai import OpenAIProvider
from distill.types import Completion, Endpoint, Request

def flow(number):
    answer = yield Request(role="teacher", prompt=f"q{number}")
    return answer.text

url, path, count, concurrency = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
flows = [(f"q{n}", lambda n=n: flow(n)) for n in range(count)]
provider = OpenAIProvider(url, "m", endpoint=Endpoint(model="m"))
sys.stderr.write("ready\\n")
sys.stderr.flush()
with Journal.open(path) as journal:
    engine = Engine(journal, {"teacher": BoundEndpoint(provider)}, concurrency=concurrency)
    try:
        outcomes, code = engine.run(flows), 0
    except EngineStopped as stop:
        outcomes, code = stop.outcomes, stop.exit_code
        sys.stderr.write(f"{stop}\\n")
sys.stdout.write("".join(f"{outcome.id} {outcome.value}\\n" for outcome in outcomes))
sys.exit(code)
"""


def child(server: MockServer, path: Path, count: int, concurrency: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", CHILD, server.url, str(path), str(count), str(concurrency)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def answers(count: int) -> str:
    return "".join(f"q{n} answer to q{n}\n" for n in range(count))


def test_killed_runs_go_on_where_they_were_and_buy_nothing_twice_but_what_was_in_flight(tmp_path: Path) -> None:
    path, needed, slots, kills = tmp_path / "journal.sqlite", 200, 10, 4
    with MockServer(latency_seconds=lambda _: random.uniform(0, 0.04)) as server:
        for _ in range(kills):
            before, more = server.count, random.randint(1, 60)
            process = child(server, path, needed, slots)
            wait_until(lambda before=before, more=more: server.count >= before + more)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        time.sleep(0.1)
        process = child(server, path, needed, slots)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, answers(needed)), err
        assert needed <= server.count <= needed + kills * slots
        with Journal.open(path, read_only=True) as journal:
            assert journal.counts()["answers"] == needed
            assert journal.counts()["intents"] >= server.count


def test_ctrl_c_finishes_what_is_in_flight_and_keeps_what_is_finished(tmp_path: Path) -> None:
    with MockServer(latency_seconds=0.2) as server:
        process = child(server, tmp_path / "journal.sqlite", 500, 5)
        wait_until(lambda: server.count >= 12)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 130, err
        assert out == answers(server.count)
        assert "Traceback" not in err
        assert f"interrupted: {server.count} of 500" in err
        process = child(server, tmp_path / "journal.sqlite", server.count, 5)
        before = server.count
        assert process.communicate(timeout=10)[0] == answers(before)
        assert server.count == before


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    with MockServer(fault=lambda number, body: HANG if number >= 8 else None) as server:
        process = child(server, tmp_path / "journal.sqlite", 50, 4)
        wait_until(lambda: server.count >= 12)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)
        assert (process.returncode, out) == (130, answers(8)), err
        assert "Traceback" not in err
