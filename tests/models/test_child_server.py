"""The local teacher: starts when asked, answers, is started again when it dies, and never outlives who started it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from distill.engine.journal.keys import key
from distill.engine.providers import ProviderError, Reply
from distill.errors import MissingPackage, ServerError
from distill.models.child_server import RESTARTS, LocalServer, LocalTeacher, identity, served_name
from distill.types import Message, Request, Sampling

pytestmark = pytest.mark.slow


@contextmanager
def stopped(teacher: LocalTeacher) -> Iterator[LocalTeacher]:
    try:
        yield teacher
    finally:
        teacher.stop()


ORPHANS = """
import sys, threading, time
from pathlib import Path
from distill.models.child_server import LocalServer

folder = Path(sys.argv[1])
servers = [LocalServer("smollm2", log=folder / f"{number}.log", say=lambda line: None) for number in range(2)]
thread = threading.Thread(target=servers[1].start)
thread.start()
servers[0].start()
thread.join()
print(*(server.pid for server in servers), flush=True)
time.sleep(600)
"""

STAND_IN = """#!{python}
import http.server, json, os, subprocess, sys, time
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
here = os.path.dirname(__file__)
with open(os.path.join(here, "starts"), "a") as starts:
    print(sys.argv[1:3], options["--served-model-name"], file=starts)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("worker", worker.pid, flush=True)
if "dead" in sys.argv[2]:
    sys.exit("no such weights")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        if self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
            return self.send_error(401)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["prompt"] == "die":
            os._exit(3)
        choice = {{"text": str(body.get("seed")), "finish_reason": "stop"}}
        data = json.dumps({{"choices": [choice], "usage": {{"prompt_tokens": 1, "completion_tokens": 1}}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

http.server.ThreadingHTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""
"""Takes vLLM's command line and answers, but for the prompt `die`; a model with `dead` in its name never starts."""


def silent(line: str) -> None:
    """Say nothing."""


def ask(prompt: str = "Hello", **sampling: Any) -> Request:
    return Request(role="teacher", prompt=prompt, sampling=Sampling(max_tokens=2, **sampling))


def send(teacher: LocalTeacher, *requests: Request) -> list[Any]:
    """What comes of sending all at once: replies and errors."""

    async def run() -> list[Any]:
        try:
            return await asyncio.gather(*map(teacher.send, requests), return_exceptions=True)
        finally:
            await teacher.close()

    return asyncio.run(run())


def gone(pid: int, *, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stand-in for vLLM's executable, first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "vllm"
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().splitlines()


def workers(log: Path) -> list[int]:
    return [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("worker")]


# --- our own server, with the embedded model


@pytest.mark.model
def test_a_teacher_answers_and_is_gone_after_its_block_with_its_log_kept(tmp_path: Path):
    lines: list[str] = []
    requests = [
        ask(temperature=0.5),
        Request(role="teacher", messages=(Message("user", "Hi"),), sampling=Sampling(max_tokens=3)),
    ]
    with stopped(LocalTeacher("smollm2", log=tmp_path / "teacher.log", say=lines.append)) as teacher:
        assert teacher.server.pid is None
        before = key(requests[0], teacher.endpoint)
        first = send(teacher, *requests * 2)
        pid = teacher.server.pid
        again = send(teacher, *requests * 2)
        assert teacher.server.pid == pid is not None
    assert gone(pid)
    assert [reply.text for reply in first] == [reply.text for reply in again]
    assert {reply.finish for reply in first} == {"length"}
    assert key(requests[0], teacher.endpoint) == before
    assert "listening http://127.0.0.1:" in (tmp_path / "teacher.log").read_text()
    assert lines[0].startswith("starting a server for smollm2")
    assert lines[1].startswith("smollm2 answers after")
    assert len(lines) == 2


@pytest.mark.model
def test_a_server_of_ours_has_a_key_of_its_own_that_nobody_else_sees(tmp_path: Path):
    lines: list[str] = []
    two = LocalServer("smollm2", log=tmp_path / "two.log")
    with LocalServer("smollm2", log=tmp_path / "one.log", say=lines.append) as one:
        assert len({one.api_key, two.api_key}) == 2
        assert len(one.api_key) >= 32
        assert one.base_url is not None
        keys = (two.api_key, one.api_key)
        headers = [{}, *({"Authorization": f"Bearer {key}"} for key in keys)]
        assert [httpx.get(f"{one.base_url}/models", headers=given).status_code for given in headers] == [401, 401, 200]
        seen = [*lines, (tmp_path / "one.log").read_text(), " ".join(psutil.Process(one.pid).cmdline())]
    assert one.api_key not in "\n".join(seen)


@pytest.mark.model
def test_servers_die_with_a_parent_that_is_killed_whichever_thread_started_them(tmp_path: Path):
    command = [sys.executable, "-c", ORPHANS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(gone(pid, seconds=0) for pid in pids)
        parent.send_signal(signal.SIGKILL)
    assert all(gone(pid) for pid in pids)


@pytest.mark.model
def test_a_server_that_cannot_start_says_why_in_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as port_owner:
        port = port_owner.getsockname()[1]
        server = LocalServer("smollm2", log=tmp_path / "server.log", port=port, say=silent)
        with pytest.raises(
            ServerError, match=rf"ended \(exit code 1\): cannot listen on 127.0.0.1 port {port}"
        ) as error:
            server.start()
    assert "\n" not in str(error.value)
    assert server.pid is None


# --- what is the same for any server, with a stand-in for vLLM


def test_the_command_line_names_the_model_and_an_exception_leaves_no_process(tmp_path: Path, vllm: Path):
    log = tmp_path / "server.log"
    server = LocalServer("org/model", log=log, server="vllm", say=silent)
    pid = None
    with suppress(KeyboardInterrupt), server:
        pid = server.pid
        raise KeyboardInterrupt
    assert starts(vllm) == ["['serve', 'org/model'] org/model"]
    assert pid is not None
    assert gone(pid)
    assert all(gone(worker) for worker in workers(log))
    server.stop()


def test_a_server_that_dies_is_started_again_twice(tmp_path: Path, vllm: Path):
    teacher = LocalTeacher("org/model", log=tmp_path / "server.log", server="vllm", say=silent)

    with stopped(teacher):
        outcomes = [send(teacher, ask(prompt))[0] for prompt in ["a", "die", "b", "die", "c", "die", "d", "e"]]
    assert [isinstance(outcome, Reply) for outcome in outcomes[:6]] == [True, False] * 3
    died = [outcome for outcome in outcomes if isinstance(outcome, ProviderError)]
    assert [(error.reason, error.transient) for error in died] == [("server_died", True)] * 3
    assert isinstance(outcomes[6], ServerError)
    assert outcomes[6] is outcomes[7]
    assert str(outcomes[6]).startswith("gave up after 2 restarts: the server for org/model ended (exit code 3)")
    assert len(starts(vllm)) == 1 + RESTARTS
    assert all(gone(worker) for worker in workers(tmp_path / "server.log"))


def test_many_sends_at_once_start_one_server_or_fail_once(tmp_path: Path, vllm: Path):
    requests = [ask(str(number)) for number in range(8)]
    with stopped(LocalTeacher("org/model", log=tmp_path / "a.log", server="vllm", say=silent)) as teacher:
        assert all(isinstance(reply, Reply) for reply in send(teacher, *requests))
    assert len(starts(vllm)) == 1
    with stopped(LocalTeacher("org/dead", log=tmp_path / "b.log", server="vllm", say=silent)) as teacher:
        errors = {str(error) for error in send(teacher, *requests)}
    assert len(starts(vllm)) == 2
    assert [error.split(" (log:")[0] for error in errors] == [
        "the server for org/dead ended (exit code 1): no such weights"
    ]


def test_a_stopped_teacher_starts_again_when_asked(tmp_path: Path, vllm: Path):
    with stopped(LocalTeacher("org/model", log=tmp_path / "server.log", server="vllm", say=silent)) as teacher:
        assert isinstance(send(teacher, ask())[0], Reply)
        teacher.stop()
        assert teacher.server.pid is None
        assert isinstance(send(teacher, ask())[0], Reply)
    assert len(starts(vllm)) == 2
    assert len(workers(tmp_path / "server.log")) == 2


def test_a_request_is_sent_with_a_seed_of_its_own(tmp_path: Path, vllm: Path):
    asked = [ask("a"), ask("a"), ask("b"), Request(role="t", prompt="a", replica=1), ask("a", seed=5)]
    with stopped(LocalTeacher("org/model", log=tmp_path / "server.log", server="vllm", say=silent)) as teacher:
        seeds = [reply.text for reply in send(teacher, *asked)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[1:])) == 4
    assert seeds[4] == "5"


def test_a_key_of_the_users_own_for_vllm_is_not_the_servers(
    tmp_path: Path, vllm: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VLLM_API_KEY", "of-another-server")
    with stopped(LocalTeacher("org/model", log=tmp_path / "server.log", server="vllm", say=silent)) as teacher:
        assert isinstance(send(teacher, ask())[0], Reply)
        assert teacher.server.api_key != "of-another-server"


def test_vllm_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackage, match="pip install vllm"):
        LocalServer("org/model", log=tmp_path / "server.log", server="vllm", say=silent).start()


# --- identity


def folder_of(parent: Path, name: str, weights: bytes = b"weights") -> str:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_an_identity_is_the_content_and_neither_path_nor_port(tmp_path: Path):
    here, there = folder_of(tmp_path / "a", "llama"), folder_of(tmp_path / "b", "llama")
    other = folder_of(tmp_path / "c", "llama", b"others")
    assert identity(here, "transformers") == identity(there, "transformers")
    assert identity(here, "transformers") != identity(other, "transformers")
    assert identity(here, "transformers") != identity(here, "vllm")
    assert str(tmp_path) not in repr(identity(here, "transformers"))


@pytest.mark.parametrize(
    ("model", "name"),
    [("smollm2", "smollm2"), ("org/model", "org/model"), ("/models/llama-8b", "llama-8b"), ("./a/b.gguf", "b.gguf")],
)
def test_a_path_is_called_by_its_last_part(model: str, name: str):
    assert served_name(model) == name
