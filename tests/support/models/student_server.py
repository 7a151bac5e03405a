"""`distill serve` in this process, asked by plain sockets."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.support.models.loaded_process import LoadedProcess

KEY = "sk-a+key/of=ours, 0123456789"


QUESTION = b'{"prompt": "a", "max_tokens": 1}'


EVIL = "http://evil.example"


FRIEND = "http://friend.example:3000"


@dataclass(frozen=True)
class Server:
    """A running `distill serve`, and what it said before it listened."""

    port: int
    process: LoadedProcess
    said: list[str]

    def raw(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes = b"") -> tuple[int, Any, Any]:
        """Status, headers and JSON of a request with exactly these headers, and Content-Length."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, response.headers, json.loads(data) if data[:1] == b"{" else data

    def post(self, *headers: tuple[str, str], body: bytes = QUESTION, host: str | None = None) -> tuple[int, Any, Any]:
        """The same of a short question, with a Host and a Content-Type."""
        given = [("Host", host or f"127.0.0.1:{self.port}"), ("Content-Type", "application/json"), *headers]
        return self.raw("POST", "/v1/completions", given, body)

    def head(self, text: str) -> bytes:
        """The status line after raw bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(text.replace("\n", "\r\n").encode("latin-1"))
            return connection.recv(65536).split(b"\r\n")[0]


@contextmanager
def serving(model: Path, log: Path, *options: str, key: str | None = None) -> Iterator[Server]:
    command = ["serve", str(model), "--port", "0", *options]
    environment = os.environ | ({"SERVER_KEY": key} if key is not None else {})
    with log.open("wb") as output:
        process = LoadedProcess(command, stdout=output.fileno(), stderr=output.fileno(), env=environment)
    try:
        while "listening" not in (said := log.read_text()):
            assert process.poll() is None, said
            time.sleep(0.05)
        lines = said.splitlines()
        port = int(lines[-1].rpartition(":")[2].removesuffix("/v1"))
        yield Server(port, process, lines)
    finally:
        process.terminate()
        process.wait(20)
