"""A local teacher as a child process: started at the first request, stopped at the end."""

from __future__ import annotations

import asyncio
import atexit
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from distill.core import console, processes, student_folder
from distill.core.embedded import EMBEDDED
from distill.core.hashing import canonical, text_sha256
from distill.core.weights import fingerprint, looks_like_path, student_fingerprint
from distill.engine.providers import ProviderError, Reply, one_line
from distill.engine.providers.openai import OpenAIProvider
from distill.errors import MissingPackage, ServerError
from distill.types import Endpoint, Request

Server = Literal["transformers", "vllm"]

START_SECONDS = 1800.0
"""Longest wait for a server's first token; weights may have to be fetched first."""
STOP_SECONDS = 5.0
"""From SIGTERM to SIGKILL."""
SAY_SECONDS = 15.0
"""Between two messages while a server loads."""
NO_VLLM = "`serve: vllm` needs vLLM, which is not installed; type: pip install vllm"
RESTARTS = 2
"""Largest number of restarts of a server that dies during a run."""

_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Defaults for variables that the user has not set."""
_KEY_VARIABLES: dict[Server, str] = {"transformers": "DISTILL_SERVER_KEY", "vllm": "VLLM_API_KEY"}
"""Variables with a server's API key, which is needed since other processes of this machine can reach its port."""
_BROKEN = {"connection", "refused", "malformed"}
"""Failure reasons that a dying server can cause."""
_LISTENING = re.compile(rb"listening (http://\S+)")


def served_name(model: str) -> str:
    """Name of a model in requests: an embedded name or Hub id unchanged, the last part of a path."""
    if model in EMBEDDED or not (looks_like_path(model) or Path(model).exists()):
        return model
    return Path(model).expanduser().resolve().name


def identity(model: str, server: Server) -> Endpoint:
    """Endpoint identity of a local model: weights, configuration, tokenizer, server and precision."""
    student = student_folder.current(Path(model).expanduser())
    info = student_fingerprint(student) if student_folder.is_student(student) else fingerprint(model)
    precision = "bfloat16" if any(Path("/dev").glob("nvidia[0-9]*")) else "float32"
    both = canonical({"model": info, "server": server, "precision": precision})
    return Endpoint(model=served_name(model), fingerprint=text_sha256(both))


class LocalServer:
    """A model server in a child process; its output is appended to `log`.

    The child ends with `stop`, with the `with` block, at the exit of this process, and when this process dies in any
    other way (`core.processes`).
    """

    def __init__(
        self,
        model: str,
        *,
        log: Path,
        server: Server = "transformers",
        port: int = 0,
        start_seconds: float = START_SECONDS,
        say: Callable[[str], None] = console.say,
    ) -> None:
        self._model = model
        self._log = log
        self._server = server
        self._port = port
        self._start_seconds = start_seconds
        self._say = say
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self.base_url: str | None = None
        """Address; `None` until the server is healthy."""
        self.api_key = secrets.token_urlsafe(32)
        """API key that requests need; secret."""

    def __enter__(self) -> LocalServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The child's process id, `None` when there is no child."""
        return self._process.pid if self._process is not None else None

    @property
    def is_alive(self) -> bool:
        """Whether the child is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> str:
        """Start the child and wait until it has generated a token; returns its base_url. Raises `ServerError`."""
        self.launch()
        return self.wait_until_healthy()

    def launch(self) -> None:
        """Start the child if it does not run."""
        if self.is_alive:
            return
        self.stop()
        command = self._command()
        self._say(f"starting a server for {served_name(self._model)} (its log: {self._log})")
        atexit.register(self.stop)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = self._spawned(command, log)

    def _spawned(self, command: Sequence[str], log: BinaryIO) -> subprocess.Popen[bytes]:
        environment = {**_ENVIRONMENT, **os.environ}
        environment[_KEY_VARIABLES[self._server]] = self.api_key
        processes.share_cores(environment)
        # In a new session, so that Ctrl-C reaches only this process, which then stops the child.
        return processes.start(
            command,
            environment=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _command(self) -> list[str]:
        if self._server == "transformers":
            here = processes.python("-m", "distill", "serve", self._model)
            key = ["--api-key-env", _KEY_VARIABLES[self._server]]
            return [*here, "--port", str(self._port), "--system", "", *key]
        self.base_url = None
        self._port = self._port or _free_port()
        name = served_name(self._model)
        address = ["--host", "127.0.0.1", "--port", str(self._port)]
        return [_vllm(), "serve", self._model, *address, "--served-model-name", name]

    def wait_until_healthy(self) -> str:
        """Wait for a first token; returns the base_url. Stops the child and raises `ServerError` if none comes."""
        started = last_message = time.monotonic()
        try:
            while not self._answers():
                now = time.monotonic()
                if not self.is_alive:
                    raise ServerError(self.ending())
                if now - started > self._start_seconds:
                    raise ServerError(f"{self._about()} gave no answer for {now - started:.0f} s; see {self._log}")
                if now - last_message >= SAY_SECONDS:
                    last_message = now
                    self._say(f"still starting {served_name(self._model)} ({now - started:.0f} s): {self._last_line()}")
                time.sleep(0.1)
        except BaseException:
            self.stop()
            raise
        assert self.base_url is not None
        self._say(f"{served_name(self._model)} answers after {time.monotonic() - started:.1f} s")
        return self.base_url

    def _answers(self) -> bool:
        """Whether the server has just generated a token."""
        if self.base_url is None and (address := self._address()) is not None:
            port = int(address.rpartition(":")[2].partition("/")[0])
            if _generates(port, served_name(self._model), self.api_key, self._start_seconds):
                self.base_url = address
        return self.base_url is not None

    def _address(self) -> str | None:
        if self._server == "vllm":
            return f"http://127.0.0.1:{self._port}/v1"
        match = _LISTENING.search(self._written())
        return match[1].decode() if match else None

    def _written(self) -> bytes:
        """The last 64 KiB that this child has written to the log."""
        with self._log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - (1 << 16)))
            return log.read()

    def _last_line(self) -> str:
        with suppress(OSError):
            lines = [line for line in self._written().decode("utf-8", "replace").splitlines() if line.strip()]
            return one_line(lines[-1].removeprefix("error: "), 200) if lines else "no output yet"
        return "no log"

    def _about(self) -> str:
        return f"the server for {served_name(self._model)}"

    def ending(self) -> str:
        """How the child ended, in one line."""
        code = self._process.poll() if self._process is not None else None
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"{self._about()} ended ({how}): {self._last_line()} (log: {self._log})"

    def stop(self) -> None:
        """End the child: SIGTERM, SIGKILL 5 s later. Does nothing where there is none."""
        with self._lock:
            process, self._process = self._process, None
            self.base_url = None
        atexit.unregister(self.stop)
        if process is not None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the child, wait, and send SIGKILL to the rest of its process group; also when interrupted."""
    try:
        if process.poll() is None:
            process.terminate()
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _vllm() -> str:
    if (path := shutil.which("vllm")) is None:
        raise MissingPackage(NO_VLLM)
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _generates(port: int, name: str, api_key: str, seconds: float) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    body = json.dumps({"model": name, "prompt": "Hello", "max_tokens": 1, "temperature": 0})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key}"}
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/v1/completions", body, headers)
        return connection.getresponse().status == 200
    return False


class LocalTeacher:
    """Provider for a model served by a child process, started at the first send and ended by `stop`.

    `endpoint` identifies the model by its content, never by its port or path. A request without a seed gets one from
    its own content and replica, so that a run is reproducible (but for rounding). A server that dies is restarted at
    most twice; sends in flight become transient failures. Raises `ServerError` when it cannot be started.
    """

    is_ours = True
    """Its answers are not paid for, so those that are not needed any more are given up."""

    def __init__(
        self,
        model: str,
        *,
        log: Path,
        server: Server = "transformers",
        timeout_seconds: float = 3600.0,
        start_seconds: float = START_SECONDS,
        say: Callable[[str], None] = console.say,
    ) -> None:
        self.endpoint = identity(model, server)
        self.server = LocalServer(model, log=log, server=server, start_seconds=start_seconds, say=say)
        self._timeout_seconds = timeout_seconds
        self._starting = asyncio.Lock()
        self._client: OpenAIProvider | None = None
        self._starts = 0
        self._given_up: ServerError | None = None

    async def send(self, request: Request) -> Reply:
        """Send once, starting the server if necessary."""
        client = await self._started()
        try:
            return await client.send(_seeded(request))
        except ProviderError as error:
            if error.reason not in _BROKEN or not await self._has_died():
                raise
            raise ProviderError("server_died", self.server.ending(), transient=True) from error

    async def _has_died(self) -> bool:
        """Whether the server has died, which may become visible a moment after a broken connection."""
        for _ in range(20):
            if not self.server.is_alive:
                return True
            await asyncio.sleep(0.05)
        return False

    async def _started(self) -> OpenAIProvider:
        async with self._starting:
            if self._given_up is not None:
                raise self._given_up
            if self._client is None or not self.server.is_alive:
                await self._start()
            assert self._client is not None
            return self._client

    async def _start(self) -> None:
        if self._client is not None:
            await self._client.close()
        try:
            if self._starts > RESTARTS:
                raise ServerError(f"gave up after {RESTARTS} restarts: {self.server.ending()}")
            self._starts += 1
            self.server.launch()
            base_url = await asyncio.to_thread(self.server.wait_until_healthy)
        except ServerError as error:
            self._given_up = error
            raise
        self._client = OpenAIProvider(
            base_url,
            self.endpoint.model,
            endpoint=self.endpoint,
            api_key=self.server.api_key,
            timeout_seconds=self._timeout_seconds,
        )

    async def close(self) -> None:
        """Close the connections of the running event loop; the server keeps running."""
        if self._client is not None:
            await self._client.close()
        self._starting = asyncio.Lock()

    def stop(self) -> None:
        """End the server and free its memory; the next send starts it again."""
        self.server.stop()
        self._client, self._starts, self._given_up = None, 0, None


def _seeded(request: Request) -> Request:
    if request.sampling.seed is not None:
        return request
    digest = text_sha256(canonical(request))
    return replace(request, sampling=replace(request.sampling, seed=int(digest[:8], 16)))
