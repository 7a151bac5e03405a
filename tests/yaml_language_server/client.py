"""A client of a language server over stdio, as an editor is one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LanguageServer:
    """Speaks the Language Server Protocol with a process; a context manager."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._asked = 0
        self._noted: list[dict[str, Any]] = []

    def __enter__(self) -> LanguageServer:
        root = self._folder.as_uri()
        self.ask("initialize", processId=None, rootUri=root, workspaceFolders=None, capabilities={})
        self._send("initialized", params={})
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def open(self, file: Path) -> list[str]:
        """The messages of the faults that the server reports in a file."""
        document = {"uri": file.as_uri(), "languageId": "yaml", "version": 1, "text": file.read_text()}
        self._send("textDocument/didOpen", params={"textDocument": document})
        while True:
            message = self._next()
            if message.get("method") == "textDocument/publishDiagnostics" and message["params"]["uri"] == file.as_uri():
                return [each["message"] for each in message["params"]["diagnostics"]]

    def at(self, method: str, file: Path, line: int, character: int) -> Any:
        """The answer about a place in an open file, counted from 0."""
        position = {"line": line, "character": character}
        return self.ask(f"textDocument/{method}", textDocument={"uri": file.as_uri()}, position=position)

    def ask(self, method: str, **params: Any) -> Any:
        """The result of a request."""
        self._asked += 1
        self._send(method, id=self._asked, params=params)
        while (message := self._next()).get("id") != self._asked or "method" in message:
            pass
        assert "error" not in message, message
        return message["result"]

    def _next(self) -> dict[str, Any]:
        """The next message; the server's own requests are answered by nothing."""
        assert self._process.stdout is not None
        length = 0
        while line := self._process.stdout.readline().strip():
            length = int(line.partition(b":")[2]) if line.startswith(b"Content-Length") else length
        assert length, "the language server has ended"
        message: dict[str, Any] = json.loads(self._process.stdout.read(length))
        if "method" in message and "id" in message:
            items = message["params"].get("items", []) if message["method"] == "workspace/configuration" else []
            self._send(id=message["id"], result=[None] * len(items) if items else None)
        return message

    def _send(self, method: str | None = None, **fields: Any) -> None:
        assert self._process.stdin is not None
        body = {"jsonrpc": "2.0", **({"method": method} if method else {}), **fields}
        text = json.dumps(body).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(text), text))
        self._process.stdin.flush()
