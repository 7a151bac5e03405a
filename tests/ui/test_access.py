"""Who may use the page of `distill ui`, what a request can reach, and how the command begins and ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.core import processes
from distill.errors import RunFolderError, ServerError
from distill.models.server_access import bound
from distill.ui import server
from tests.support.run_folder import write_run
from tests.ui.page_server import Served, serving

PATHS = ("/", "/ui.js", "/api/runs", "/api/run?run=a", "/report?run=a", "/api/chat?run=a")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "a", prompts=2)
    (folder / "a" / "report.html").write_text("<p>the report")
    (folder / "a" / "notes.txt").write_text("private")
    (folder / "outside.jsonl").write_text('{"id": "outside"}\n')
    write_run(folder / "linked", prompts=2)
    (folder / "linked" / "linked.jsonl").symlink_to(folder / "outside.jsonl")
    (folder / "b").symlink_to(folder / "a")
    (folder / "no-run").mkdir()
    return folder


@pytest.fixture(scope="module")
def page(root: Path) -> Iterator[Served]:
    with serving(root) as one:
        yield one.enter()


def test_the_token_opens_once_and_nothing_is_answered_without_its_cookie(root: Path):
    with serving(root) as one:
        assert {one.ask(path)[0] for path in PATHS} == {403}
        assert {one.ask(f"/?token={token}")[0] for token in ("", "x", one.token[:-1], "%ff")} == {403}
        assert one.ask(f"/api/runs?token={one.token}")[0] == 403
        one.enter()
        attributes = str(one.headers).split("Set-Cookie: ")[1].partition("\n")[0]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes.split("; "))
        assert {path: one.ask(path)[0] for path in PATHS} == dict.fromkeys(PATHS, 200)
        name, _, value = one.cookie.partition("=")
        for cookie in ("", f"{name}=", f"{name}={value}x", f"{name}={one.token}", f"other={value}"):
            assert one.ask("/api/runs", Cookie=cookie)[0] == 403
        assert one.ask(f"/?token={one.token}", Cookie="")[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_host_or_origin_is_refused_even_with_the_cookie(page: Served, headers: dict[str, str]):
    for path in PATHS:
        status, text = page.ask(path, **headers)
        assert (status, "--allow-origin" in text) == (403, False)


def test_only_a_page_of_ours_can_post(page: Served):
    assert page.ask("/api/chat/close", body={}, Content_Type="text/plain")[0] == 415
    assert page.ask("/api/chat/close", body={}, Origin="http://evil.example")[0] == 403
    assert page.ask("/api/chat/close", body={}, Origin=f"http://127.0.0.1:{page.port}")[0] == 200
    assert page.ask("/api/chat/ask", body=[])[0] == 400
    assert page.ask("/api/chat/ask", body={"run": "a", "line": "x", "sides": [], "temperature": 1e9})[0] == 400


def test_the_page_may_load_and_be_framed_by_nothing_else(page: Served):
    for path in PATHS[:4]:
        page.ask(path)
        assert page.headers is not None
        policy = page.headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert {"default-src 'none'", "frame-ancestors 'none'", "script-src 'self'"} <= set(policy.split("; "))
    assert page.ask("/report?run=a") == (200, "<p>the report")
    assert page.headers["Content-Security-Policy"].startswith(
        "sandbox allow-scripts allow-downloads; default-src 'none'"
    )
    assert page.headers["X-Content-Type-Options"] == "nosniff"


NAMES = ("b", "no-run", "..", ".", "", "a/../a", "/etc", "a\x00", "../a")
FILES = ("notes.txt", "linked.jsonl", "../outside.jsonl", "/etc/passwd", "run.json", "", "student/../kept.jsonl", ".")


def test_no_path_is_taken_from_a_request(page: Served):
    assert {run["name"]: run["status"] for run in page.get("/api/runs")} == {"a": "stopped", "linked": "unreadable"}
    for path in ("/../server.py", "/page.css", "/api/", "/%2e%2e/server.py", "/a/run.json", "//etc/passwd"):
        assert page.ask(path)[0] == 404
    for name in NAMES:
        assert page.ask(f"/api/run?run={name.replace(chr(0), '%00')}")[0] == 404
    files = {one["name"] for one in page.get("/api/run", run="a")["files"]}
    assert files == {"answers.jsonl", "dropped.jsonl", "student/train_log.jsonl"}
    for name in FILES:
        for address in ("rows", "row", "facets"):
            assert page.ask(f"/api/{address}?run=a&file={name}")[0] == 404
            assert page.ask(f"/api/{address}?run=linked&file={name}")[0] == 404


def test_looking_changes_no_file(root: Path, page: Served, tmp_path: Path):
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (root / "a").rglob("*") if path.is_file()}

    before = state()
    at = page.get("/api/rows", run="a", file="dropped.jsonl", text="bridge")["rows"][0]["at"]
    for path in (*PATHS, "/api/facets?run=a&file=dropped.jsonl", f"/api/row?run=a&file=dropped.jsonl&at={at}"):
        page.ask(path)
    assert state() == before
    status, text = page.ask(f"/api/row?run=a&file=dropped.jsonl&at={at + 1}")
    assert (status, "no row of dropped.jsonl begins there" in text) == (404, True)


def test_a_run_that_cannot_be_read_is_one_line_beside_the_others(tmp_path: Path):
    write_run(tmp_path / "good", prompts=2)
    damages = {"cut": "{", "list": "[]", "odd": '{"name": 3, "stages": 7}', "sent": '{"sent": [], "stages": {}}'}
    for name, text in damages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    with serving(tmp_path) as page:
        runs = {run["name"]: run for run in page.enter().get("/api/runs")}
        assert runs.pop("good")["status"] == "stopped"
        assert {run["status"] for run in runs.values()} == {"unreadable"}
        assert set(runs) == set(damages)
        for name in damages:
            status, text = page.ask(f"/api/run?run={name}")
            assert (status, "run.json" in json.loads(text)["error"]["message"]) == (404, True)


def test_hidden_characters_of_a_row_are_visible(tmp_path: Path):
    write_run(tmp_path / "a", prompts=2)
    row = {"id": "\u202eid", "instruction": "a\x1b[2J", "meta": {"refused": "b\u2066"}}
    (tmp_path / "a" / "refused.jsonl").write_text(json.dumps(row) + "\n")
    with serving(tmp_path) as page:
        [shown] = page.enter().get("/api/rows", run="a", file="refused.jsonl")["rows"]
        whole = page.ask("/api/row?run=a&file=refused.jsonl&at=0")[1]
    assert (shown["id"], shown["prompt"], shown["objections"]) == ("⟦U+202E⟧id", "a⟦U+001B⟧[2J", ["refused/b⟦U+2066⟧"])
    assert "\\u202e" not in whole
    assert "⟦U+202E⟧id" in whole


def test_a_folder_that_is_a_run_is_shown_alone(root: Path):
    with serving(root / "a") as page:
        assert [run["name"] for run in page.enter().get("/api/runs")] == ["a"]


def test_a_taken_port_and_a_missing_folder_are_one_line(root: Path):
    with bound(server.HOST, 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"cannot listen on 127.0.0.1 port {port} .* choose another port"):
            server.serve(root, port=port, say=print, show=print)
    with pytest.raises(RunFolderError, match="there is no folder"):
        server.serve(root / "none", port=0, say=print, show=print)


def test_ctrl_c_ends_it_in_a_line(root: Path):
    command = processes.python("-c", "from distill.cli.main import main; main()", "ui", str(root), "--port", "0")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        first = running.stderr.readline()
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert re.fullmatch(r"open http://127\.0\.0\.1:\d+/\?token=\S{43} \(Ctrl-C ends it\)\n", first)
    assert (rest, running.returncode) == ("ui: ended\n", 0)
