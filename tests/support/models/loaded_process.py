"""The command line in processes that begin with the packages of training loaded: forks of one that has imported them.

A fresh process imports for five to eight seconds. Nothing else differs: each has its own id, environment and folder.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

PARENT = """
import gc, json, os, random, signal, socket, sys
link = socket.socket(fileno=int(sys.argv[1]))
import distill.cli.main, distill.cli.commands, distill.models.continuous_batching, distill.models.server
import distill.train.loop, transformers.models.llama.modeling_llama
gc.collect()
gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    job, streams, _, _ = socket.recv_fds(link, 1 << 18, 4)
    if not job:
        os._exit(0)
    if not os.fork():
        break
    for stream in streams:
        os.close(stream)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
end = streams.pop()
if child := os.fork():
    os.write(end, b"%d\\n" % child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(end, b"%d\\n" % code)
    os._exit(0)
for number, stream in enumerate(streams):
    os.dup2(stream, number)
for stream in (*streams, end):
    os.close(stream)
link.close()
arguments, folder, environment = json.loads(job)
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
random.seed()
sys.argv = ["distill", *arguments]
distill.cli.main.main()
"""
"""Two forks for each process: one stays to report its end, which only a parent learns."""


@cache
def _link() -> socket.socket:
    """To the process that is forked; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])}
    command = [sys.executable, "-c", PARENT, str(theirs.fileno())]
    with theirs, open(os.devnull, "w+b") as nothing:
        parent = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=nothing, stdout=nothing, stderr=nothing, env=environment
        )
    atexit.register(parent.wait)
    atexit.register(ours.close)  # before, at which it ends
    return ours


class LoadedProcess:
    """`distill` with these arguments, its streams as file descriptors; as much of `subprocess.Popen` as is used."""

    def __init__(
        self, arguments: Sequence[str], *, stdin: int | None = None, stdout: int, stderr: int, env=None, cwd=None
    ) -> None:
        job = json.dumps([list(arguments), str(cwd or Path.cwd()), dict(os.environ if env is None else env)])
        read, write = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        socket.send_fds(_link(), [job.encode()], [nothing if stdin is None else stdin, stdout, stderr, write])
        os.close(write)
        os.close(nothing)
        self._end = os.fdopen(read, "r")
        self.pid = int(self._end.readline())
        os.set_blocking(read, False)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        if self.returncode is None and (line := self._end.readline()):
            self.returncode = int(line)
            self._end.close()
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The same at its end. Raises `TimeoutExpired`."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
