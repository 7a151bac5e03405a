"""`distill doctor` and `check` probe an endpoint, keep what they found and warn."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from distill.cli.main import main
from distill.engine import probe
from distill.engine.journal.keys import key
from distill.engine.journal.store import Journal
from distill.engine.mock_server import MockServer, status
from tests.support.engine.journal_rows import HERE, answer, numbered, write_answer
from tests.support.engine.probed_model import KEY, Model, odd

pytestmark = pytest.mark.slow


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Listed:
    """A server that lists its models and hands every question on to a `Model`."""

    def __init__(self, *models: str, code: int = 200) -> None:
        self.headers: list[dict[str, str]] = []
        self.posts = 0
        outer, model = self, Model("stop")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                self._reply(code, {"data": [{"id": name} for name in models]})

            def do_POST(self) -> None:
                outer.posts += 1
                self._reply(200, model(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

            def _reply(self, code: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}/v1"


@contextmanager
def listing(*models: str, code: int = 200) -> Iterator[Listed]:
    listed = Listed(*models, code=code)
    thread = threading.Thread(target=listed.server.serve_forever, args=[0.01])
    thread.start()
    try:
        yield listed
    finally:
        listed.server.shutdown()
        thread.join()
        listed.server.server_close()


def distill(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def endpoint_lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if "127.0.0.1" in line or line.startswith("  ")]


def test_doctor_asks_the_only_model_and_keeps_what_it_found(cache, capsys):
    with listing("tiny") as server:
        _, out, _ = distill(capsys, "doctor", f"http://{server.address}")
    assert f"ok   http://{server.address} serves tiny" in out
    assert 'the answer goes on after "4"' in next(line for line in out.splitlines() if line.startswith("  stop"))
    found = probe.load(f"http://{server.address}", "tiny")
    assert found is not None
    assert odd(found) == {"stop": "ignored"}
    assert server.posts == found.calls


def test_doctor_names_the_models_where_there_are_several(cache, capsys):
    with listing("tiny", "large") as server:
        code, out, _ = distill(capsys, "doctor", f"http://{server.address}")
        assert (code, server.posts) == (1, 0)
        assert "serves tiny, large" in out
        assert "--model NAME" in out
        distill(capsys, "doctor", f"http://{server.address}", "--model", "large")
    assert probe.load(f"http://{server.address}", "large") is not None


def test_doctor_asks_a_named_model_where_no_list_is_given(cache, capsys):
    with MockServer(answer=Model()) as server:
        _, out, _ = distill(capsys, "doctor", server.url, "--model", "imaginary")
    assert f"{server.url} answered 405 to GET /models" in out
    assert "  stop             honoured" in out


def test_doctor_sends_the_key_and_prints_neither_it_nor_what_the_address_hides(cache, capsys, monkeypatch):
    monkeypatch.setenv("PROBE_KEY", KEY)
    with listing("tiny") as server:
        url = f"http://{server.address}?token=hidden-token-1"
        _, out, err = distill(capsys, "doctor", url, "--api-key-env", "PROBE_KEY")
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    kept = "".join(path.read_text() for path in cache.rglob("*.json"))
    assert kept
    assert [secret for secret in (KEY, "hidden-token-1") if secret in out + err + kept] == []


def test_doctor_says_who_to_ask_for_a_key(cache, capsys):
    with listing(code=401) as server:
        code, out, err = distill(capsys, "doctor", f"http://{server.address}", "--model", "tiny")
    assert code == 1
    assert endpoint_lines(out) == [
        f"MISS http://{server.address} answered 401 to GET /models; "
        "name the variable that holds the key with --api-key-env"
    ]
    assert err == ""
    assert server.posts == 0


def test_doctor_says_in_one_line_that_nothing_is_there(cache, capsys):
    code, out, err = distill(capsys, "doctor", "http://user:word@127.0.0.1:9/v1?key=1", "--model", "tiny")
    assert code == 1
    assert endpoint_lines(out) == [
        "MISS cannot connect to http://127.0.0.1:9/v1: Cannot connect to host 127.0.0.1:9 ssl:default "
        "[Connect call failed ('127.0.0.1', 9)]; check base_url and that its server is running"
    ]
    assert err == ""


def test_doctor_refuses_a_key_variable_that_is_not_set(cache, capsys):
    code, out, err = distill(capsys, "doctor", "http://127.0.0.1:9/v1", "--api-key-env", "NO_SUCH_VARIABLE")
    assert (code, out) == (2, "")
    assert err == "error: --api-key-env: the variable NO_SUCH_VARIABLE is not set; type: export NO_SUCH_VARIABLE=…\n"


def test_doctor_wants_an_address_for_a_model(cache, capsys):
    code, _, err = distill(capsys, "doctor", "--model", "tiny")
    assert (code, err) == (2, "error: --model and --api-key-env need the URL of an endpoint\n")


def test_doctor_says_which_rows_of_a_runs_journal_are_sound(cache, capsys, tmp_path):
    with Journal.open(tmp_path / "journal.sqlite") as journal:
        for number in range(3):
            write_answer(journal, answer(key(numbered(number), HERE), f"answer {number}"), numbered(number), HERE)
    code, out, _ = distill(capsys, "doctor", str(tmp_path))
    assert (code, out.splitlines()[-1]) == (0, "ok   journal: every row is sound")
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        connection.execute("UPDATE answers SET text = 'another' WHERE rowid = 2")
        connection.commit()
    code, out, err = distill(capsys, "doctor", str(tmp_path))
    assert (code, err) == (1, "")
    assert "     journal: 3 answers; 1 damaged: " in out
    assert out.splitlines()[-1].startswith("MISS journal: damaged; ")


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe whose teacher is at an address, and returns its path."""

    def write(url: str | None, **teacher: Any) -> str:
        (tmp_path / "tasks.txt").write_text("Name a fruit.\n")
        where = {"base_url": url} if url else {"serve": "transformers"}
        document = {
            "name": "probing",
            "teacher": {"model": "smollm2", **where, "terms": "none", "sampling": {"stop": ["\n"]}, **teacher},
            "collect": {"tasks": "tasks.txt", "system": "Be brief."},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(document))
        return str(path)

    return write


STOP_WARNING = "warning: teacher.sampling.stop is set, but this endpoint ignores stop: answers are cut after the fact"


SYSTEM_WARNING = (
    "warning: collect.system is set, but this endpoint ignores system messages: answers are given without it"
)


def test_check_probes_the_teacher_and_warns_of_what_it_ignores(cache, capsys, recipe):
    with MockServer(answer=Model("stop", "system")) as server:
        code, out, _ = distill(capsys, "check", recipe(server.url), "--probe")
    assert code == 0
    assert "  stop             ignored " in out
    assert out.splitlines()[-2:] == [STOP_WARNING, SYSTEM_WARNING]


def test_check_reads_what_was_found_and_asks_nothing(cache, capsys, recipe):
    with MockServer(answer=Model("stop", "system")) as server:
        path = recipe(server.url)
        distill(capsys, "check", path, "--probe")
        asked = server.count
        code, out, _ = distill(capsys, "check", path)
    assert (code, server.count) == (0, asked)
    assert out.splitlines()[-2:] == [f"{STOP_WARNING} (probed just now)", f"{SYSTEM_WARNING} (probed just now)"]


def test_check_sends_the_recipes_key_and_secret_headers(cache, capsys, recipe, monkeypatch):
    monkeypatch.setenv("PROBE_KEY", KEY)
    monkeypatch.setenv("PROBE_TEAM", "team-secret-12345")
    with MockServer(answer=Model()) as server:
        path = recipe(server.url, api_key_env="PROBE_KEY", headers_env={"X-Team": "PROBE_TEAM"})
        _, out, err = distill(capsys, "check", path, "--probe")
    sent = {(headers["Authorization"], headers["X-Team"]) for headers in server.headers}
    assert sent == {(f"Bearer {KEY}", "team-secret-12345")}
    assert [secret for secret in (KEY, "team-secret-12345") if secret in out + err] == []


def test_check_of_a_server_of_our_own_needs_no_probe(cache, capsys, recipe):
    code, out, _ = distill(capsys, "check", recipe(None), "--probe")
    assert code == 0
    assert out.splitlines()[-1].startswith("probe: no teacher.base_url in the recipe")


@pytest.mark.parametrize(("fault", "said"), [(status(401), "HTTP 401"), (status(404), "HTTP 404")])
def test_check_says_in_one_line_why_it_cannot_probe(cache, capsys, recipe, fault, said):
    with MockServer(fault=lambda number, body: fault) as server:
        code, _, err = distill(capsys, "check", recipe(server.url), "--probe")
    errors = [line for line in err.splitlines() if line.startswith("error")]
    assert code == 1
    assert len(errors) == 1
    assert said in errors[0]
    assert server.url in errors[0]
    assert list(cache.rglob("*.json")) == []


def test_check_of_an_unreachable_teacher_is_one_line(cache, capsys, recipe):
    code, _, err = distill(capsys, "check", recipe("http://127.0.0.1:9/v1"), "--probe")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: cannot connect to http://127.0.0.1:9/v1")
