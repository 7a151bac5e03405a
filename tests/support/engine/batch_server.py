"""A provider's Files and Batches over real HTTP, for tests: what openai documents, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

PATHS = ("/v1/chat/completions", "/v1/completions")
FINISHED = ("completed", "failed", "expired", "cancelled")


def text_of(body: Mapping[str, Any]) -> str:
    """What a request's body asks."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def say(status: int, message: str, code: str | None = None) -> web.Response:
    """An error in OpenAI's shape."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


@dataclass
class Job:
    """One batch on the server."""

    row: dict[str, Any]
    lines: list[dict[str, Any]]
    looks: int = 0


@dataclass
class BatchServer:
    """Serves on loopback while the `with` block runs. The switches may be changed at any time."""

    key: str | None = None
    """Any other one is answered with 401."""
    looks: int = 0
    """How many times a batch is looked at before it is over."""
    fails: Callable[[str, int], int | None] = lambda text, times: None
    """The HTTP status of a line from its text and how often it was submitted; `None` answers it."""
    says: Callable[[str, int], str] = lambda text, times: f"answer to {text}"
    """The answer to a line, from the same."""
    expires_after: int | None = None
    """Lines that are answered before a batch expires."""
    refuses: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]] = lambda lines: []
    """The validation errors of a batch from its lines."""
    mixed: bool = False
    """Whether lines that failed stand in the output file too, as with some compatible servers."""
    most_requests: int = 50_000
    most_bytes: int = 200_000_000
    breaks: list[str] = field(default_factory=list)
    """Methods whose next call is done and then answered with HTTP 500, such as `create`."""
    url: str = ""
    files: dict[str, tuple[dict[str, Any], bytes]] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    submitted: Counter[str] = field(default_factory=Counter)
    """How often each custom id was in a batch that was created."""
    answered: Counter[str] = field(default_factory=Counter)
    """How often each custom id was answered, which is what is paid."""
    calls: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> BatchServer:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        app = web.Application(client_max_size=2**30)
        app.add_routes(
            [
                web.post("/v1/files", self._called(self._upload)),
                web.get("/v1/files", self._called(self._list_files)),
                web.get("/v1/files/{id}/content", self._called(self._content)),
                web.post("/v1/batches", self._called(self._create)),
                web.get("/v1/batches", self._called(self._list_batches)),
                web.get("/v1/batches/{id}", self._called(self._retrieve)),
                web.post("/v1/batches/{id}/cancel", self._called(self._cancel)),
            ]
        )
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await self._ending.wait()
        await runner.cleanup()

    def _called(self, method: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
        name = method.__name__.strip("_")

        async def called(request: web.Request) -> web.StreamResponse:
            self.calls[name] += 1
            if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
                return say(
                    401, f"Incorrect API key provided: {request.headers.get('Authorization')}", "invalid_api_key"
                )
            response: web.StreamResponse = await method(request)
            if name in self.breaks:
                self.breaks.remove(name)
                return say(500, "The server had an error while processing your request")
            return response

        return called

    def _add_file(self, name: str, purpose: str, data: bytes) -> str:
        from openai.types import FileObject

        id = f"file-{len(self.files)}"
        row = {
            "id": id, "object": "file", "bytes": len(data), "created_at": int(time.time()), "filename": name,
            "purpose": purpose, "status": "processed",
        }  # fmt: skip
        FileObject.model_validate(row)
        self.files[id] = row, data
        return id

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        data = file.file.read()
        if form["purpose"] != "batch":
            return say(400, "expected the purpose batch")
        if len(data) > self.most_bytes:
            return say(413, f"the file has {len(data)} bytes, more than {self.most_bytes}")
        return web.json_response(self.files[self._add_file(file.filename, "batch", data)][0])

    async def _list_files(self, request: web.Request) -> web.Response:
        return self._page(request, [row for row, _ in self.files.values() if row["purpose"] == "batch"])

    async def _content(self, request: web.Request) -> web.Response:
        if request.match_info["id"] not in self.files:
            return say(404, f"No such File object: {request.match_info['id']}")
        return web.Response(body=self.files[request.match_info["id"]][1])

    def _page(self, request: web.Request, rows: Sequence[dict[str, Any]]) -> web.Response:
        """Newest first, a page after the id that is asked for."""
        rows = list(reversed(rows))
        after = [row["id"] for row in rows].index(request.query["after"]) + 1 if "after" in request.query else 0
        page = rows[after : after + int(request.query.get("limit", 20))]
        ids = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        more = after + len(page) < len(rows)
        return web.json_response({"object": "list", "data": page, "has_more": more, **ids})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        assert asked["completion_window"] == "24h"
        assert asked["endpoint"] in PATHS
        if asked["input_file_id"] not in self.files:
            return say(400, f"No such File object: {asked['input_file_id']}")
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]][1].split(b"\n") if line]
        assert all(line["url"] == asked["endpoint"] and line["method"] == "POST" for line in lines)
        errors = self.refuses(lines)
        if len(lines) > self.most_requests:
            errors = [{"code": "too_many_tasks", "message": f"The batch has over {self.most_requests} requests."}]
        if len({line["custom_id"] for line in lines}) < len(lines):
            errors = [{"code": "duplicate_custom_id", "message": "The custom_id is already used."}]
        id = f"batch_{len(self.jobs)}"
        row = {
            "id": id, "object": "batch", "endpoint": asked["endpoint"], "completion_window": "24h",
            "input_file_id": asked["input_file_id"], "created_at": int(time.time()), "status": "in_progress",
            "metadata": asked.get("metadata"), "output_file_id": None, "error_file_id": None,
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }  # fmt: skip
        if errors:
            row |= {"status": "failed", "errors": {"object": "list", "data": errors}}
        else:
            self.submitted.update(line["custom_id"] for line in lines)
        self.jobs[id] = Job(row, lines)
        return self._shown(id)

    def _shown(self, id: str) -> web.Response:
        from openai.types import Batch

        Batch.model_validate(self.jobs[id].row)
        return web.json_response(self.jobs[id].row)

    async def _list_batches(self, request: web.Request) -> web.Response:
        return self._page(request, [job.row for job in self.jobs.values()])

    async def _retrieve(self, request: web.Request) -> web.Response:
        if (id := request.match_info["id"]) not in self.jobs:
            return say(404, f"No batch found with id '{id}'.")
        job = self.jobs[id]
        job.looks += 1
        if job.row["status"] == "cancelling":
            self._end(job, "cancelled", len(job.lines) // 2)
        elif job.row["status"] == "in_progress" and job.looks > self.looks:
            expired = self.expires_after is not None and self.expires_after < len(job.lines)
            self._end(job, "expired" if expired else "completed", self.expires_after)
        return self._shown(id)

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        if job.row["status"] in FINISHED:
            return say(409, f"Cannot cancel a batch with status '{job.row['status']}'.")
        job.row["status"] = "cancelling"
        return self._shown(request.match_info["id"])

    def _end(self, job: Job, status: str, answered: int | None) -> None:
        """Write both files, in no order."""
        lines = random.Random(len(job.lines)).sample(job.lines, len(job.lines))
        done = [self._result(line) for line in (lines if answered is None else lines[:answered])]
        code = f"batch_{status}"
        left = [] if answered is None else lines[answered:]
        never = [
            {
                "custom_id": line["custom_id"],
                "response": None,
                "error": {"code": code, "message": f"The batch {status}."},
            }
            for line in left
        ]
        good = [row for row in done if self.mixed or row["response"]["status_code"] == 200]
        bad = [] if self.mixed else [row for row in done if row["response"]["status_code"] != 200]
        bad += never
        job.row["output_file_id"] = self._results("output", good) if good else None
        job.row["error_file_id"] = self._results("error", bad) if bad else None
        job.row["request_counts"] = {"total": len(job.lines), "completed": len(good), "failed": len(bad)}
        job.row["status"] = status

    def _results(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
        lines = [
            json.dumps({"id": f"batch_req_{number}", **row}, ensure_ascii=False) for number, row in enumerate(rows)
        ]
        return self._add_file(f"{kind}.jsonl", "batch_output", "".join(line + "\n" for line in lines).encode())

    def _result(self, line: Mapping[str, Any]) -> dict[str, Any]:
        of, text = line["custom_id"], text_of(line["body"])
        status = self.fails(text, self.submitted[of])
        if status is not None:
            body = {"error": {"message": f"no answer to {text}", "type": "error", "code": None}}
            return {
                "custom_id": of,
                "response": {"status_code": status, "request_id": "r", "body": body},
                "error": None,
            }
        self.answered[of] += 1
        response = {"status_code": 200, "request_id": "r", "body": _answer(line, self.says(text, self.submitted[of]))}
        return {"custom_id": of, "response": response, "error": None}


def _answer(line: Mapping[str, Any], text: str) -> dict[str, Any]:
    from openai.types import Completion
    from openai.types.chat import ChatCompletion

    is_chat = line["url"] == PATHS[0]
    said = {"message": {"role": "assistant", "content": text, "refusal": None}} if is_chat else {"text": text}
    body = {
        "id": "c", "object": "chat.completion" if is_chat else "text_completion", "created": 0,
        "model": line["body"]["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, **said}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip
    (ChatCompletion if is_chat else Completion).model_validate(body)
    return body
