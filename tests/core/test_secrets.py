"""A key is in no byte that a run writes or prints, wherever an endpoint echoes it and however a recipe names it."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import random
import re
import shutil
import string
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import pytest
import yaml
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from distill.cli import main
from distill.core import redaction
from distill.engine.journal.keys import key
from distill.engine.providers.openai import OpenAIProvider
from distill.types import Request, Sampling
from tests.support.echo_server import ENCODINGS, PLACES, SPELLINGS, EchoServer

PRINTABLE = string.ascii_letters + string.digits + string.punctuation
WINDOW = 12
"""So many characters of a key in a row are a leak."""
NAMED = ("api_key_env", "bearer", "header", "path", "query", "body")
"""How a recipe names the variable that holds the key."""
CONTROL = "0f1e2d3c-control-key-of-the-same-kind"


def teacher(url: str, named: str) -> dict[str, Any]:
    section: dict[str, Any] = {"model": "m", "base_url": url, "terms": "ours", "sampling": {"max_tokens": 200}}
    if named == "api_key_env":
        section["api_key_env"] = "THE_KEY"
    elif named in {"bearer", "header"}:
        section["headers_env"] = {"Authorization" if named == "bearer" else "api-key": "THE_HEADER"}
    elif named in {"path", "query"}:
        section["base_url"] = f"{url}/$THE_KEY/v1" if named == "path" else f"{url}?tenant=7&pwd=${{THE_KEY}}"
    else:
        section["sampling"]["extra_body"] = {"auth": {"token": "$THE_KEY"}}
    return section


def recipe(folder: Path, url: str, named: str) -> Path:
    tasks = [{"id": f"t{n}", "instruction": f"Question {n}, {'plain' if n % 2 else 'odd'}."} for n in range(4)]
    (folder / "tasks.jsonl").write_text("".join(f"{json.dumps(task)}\n" for task in tasks))
    section = teacher(url, named)
    document = {
        "name": "keys",
        "teacher": section,
        "collect": {"strategy": "answer", "tasks": "tasks.jsonl", "test": 2, "max_failed": 1.0, "attempts": 2},
        "curate": [{"filter": "length", "min_words": 1}],
        "compare": {"metrics": ["overlap", "style"], "student": section, "base": section},
    }
    path = folder / "keys.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def run(folder: Path, secret: str, commands: list[list[str]]) -> bytes:
    """Everything that the commands printed."""
    redaction.forget()
    out = io.StringIO()
    secrets = {"THE_KEY": secret, "THE_HEADER": f"Bearer {secret}", "DISTILL_CACHE": str(folder / "cache")}
    with environment(secrets), redirect_stdout(out), redirect_stderr(out):
        for command in commands:
            main._code(command)
    return out.getvalue().encode("utf-8", "surrogatepass")


def written(folder: Path) -> bytes:
    """Every byte below the folder but the recipe that we wrote."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in {"keys.yaml"}]
    assert files
    return b"\n".join(file.read_bytes() for file in files)


def views(data: bytes) -> list[bytes]:
    """The bytes, and the same with JSON's, HTML's and URLs' escapes undone."""
    unescaped = re.sub(rb"\\+u00([0-9a-fA-F]{2})", lambda match: bytes.fromhex(match[1].decode()), data)
    bare = unescaped.replace(b"\\", b"")
    as_html = html.unescape(bare.decode("latin-1")).encode("utf-8")
    return [data, data.replace(b"\x00", b""), unescaped, bare, as_html, unquote_to_bytes(data)]


def leaks(secret: str, data: bytes, control: bytes) -> list[str]:
    """What of the secret is in the data and not in those of a run with another key."""
    length = min(WINDOW, len(secret))
    pieces = {secret[start : start + length] for start in range(len(secret) - length + 1)}
    seen, known = views(data), views(control)
    return [
        piece
        for piece in sorted(pieces)
        if any(piece.encode() in view for view in seen) and not any(piece.encode() in view for view in known)
    ]


def road(folder: Path, path: Path) -> list[list[str]]:
    home = str(folder / "run")
    return [["run", str(path), "--run-dir", home], ["show", home, "--worst", "3"]]


def whole_run(secret: str, named: str, *echo: str) -> tuple[bytes, list[Any], list[bytes]]:
    """All that a run wrote and printed, its sessions, and what reached the server."""
    folder = Path(tempfile.mkdtemp())
    try:
        with EchoServer(secret, *echo) as server:
            said = run(folder, secret, road(folder, recipe(folder, server.url, named)))
        rows = [json.loads(line) for line in (folder / "run" / "sessions.jsonl").read_text().splitlines()]
        port = server.url.rpartition(":")[2].partition("/")[0].encode()
        sent = [path.encode() + json.dumps(headers).encode() + body for path, headers, body in server.requests]
        return (said + written(folder)).replace(port, b"PORT"), rows, sent
    finally:
        shutil.rmtree(folder)


keys = st.builds(
    lambda seed, length: "".join(random.Random(seed).choices(PRINTABLE, k=length)),
    st.integers(0, 2**32),
    st.integers(redaction.SHORTEST, 200),
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(keys, st.sampled_from(NAMED), st.sampled_from(PLACES), st.sampled_from([*SPELLINGS]), st.sampled_from(ENCODINGS))
@example("sk-live/abc+def=0123", "bearer", "error", "php", "utf-16")
@example("sk-live/abc+def=0123", "path", "redirect", "plain", "utf-8")
@example("gsk_0123456789abcdef", "query", "twice", "go", "utf-8")
@example("sk 'live' \\ /abc+def=0123", "header", "answer", "nested", "utf-16-le")
def test_a_key_is_in_no_byte_of_a_run(secret: str, named: str, place: str, spelling: str, encoding: str) -> None:
    for drawn in (named, place, spelling, encoding):
        event(drawn)
    seen, rows, sent = whole_run(secret, named, place, spelling, encoding)
    if leaks(secret, seen, b""):  # it may be a word that a run writes anyway
        assert leaks(secret, seen, whole_run(CONTROL, named, place, spelling, encoding)[0]) == []
    assert any(secret.encode() in unquote_to_bytes(each) or json.dumps(secret)[1:-1].encode() in each for each in sent)
    plain = [row["messages"] for row in rows if "plain" in row["messages"][0]["content"]]
    questions = [f"Question {number}, plain." for number in (1, 3)]
    assert [[turn["content"] for turn in turns] for turns in plain] == [
        [one, f"{one} is answered."] for one in questions
    ]


def test_the_search_would_find_what_is_there() -> None:
    secret = "sk-live/abc+def=0123"
    for spelling in SPELLINGS.values():
        assert leaks(secret, spelling(secret).encode(), b"") or "&amp;" in html.escape(spelling(secret))
    assert "sk-live/abc+" in leaks(secret, b"key sk-live/abc+de cut", b"")
    assert leaks(secret, b"key sk-live/abc and bc+def=0123", b"") == []


# --- what a recipe names


def checked(tmp_path: Path, section: dict[str, Any], *commands: str, secret: str = "sk-live/abc+def=0123") -> str:
    """What the commands print of a recipe with this teacher; `RECIPE` stands for its path."""
    path = recipe(tmp_path, "http://127.0.0.1:9/v1", "api_key_env")
    document = yaml.safe_load(path.read_text())
    document["teacher"] = {**document["teacher"], **section}
    del document["compare"]
    path.write_text(yaml.safe_dump(document))
    given = [[str(path) if word == "RECIPE" else word for word in command.split()] for command in commands]
    return run(tmp_path, secret, given).decode()


SLIPS = (
    "sk-live-0123456789abcdef",
    "gsk_0123456789abcdefABCDEF",
    "AKIA0123456789ABCDEF",
    "AIzaSy0123456789",
    "123456789",
)


@pytest.mark.slow
@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("where", ["api_key_env", "headers_env", "list", "option", "base_url", "body"])
def test_a_key_in_the_place_of_a_variable_is_not_shown(tmp_path: Path, slip: str, where: str) -> None:
    is_name = slip.isidentifier()
    sections: dict[str, dict[str, Any]] = {
        "api_key_env": {"api_key_env": int(slip) if slip.isdigit() else slip},
        "headers_env": {"headers_env": {"api-key": slip}},
        "list": {"headers_env": [slip], "api_key_env": [slip]},
        "base_url": {"base_url": f"http://127.0.0.1:9/v1?k=${slip}" if is_name else slip},
        "body": {"sampling": {"extra_body": {"token": f"${slip}"} if is_name else slip}},
    }
    commands = ["check RECIPE", f"run RECIPE --run-dir {tmp_path}/run"]
    if where == "option":
        commands = [f"doctor http://127.0.0.1:9/v1 --api-key-env {slip}"]
    said = checked(tmp_path, sections.get(where, {}), *commands)
    assert "error: " in said
    assert leaks(slip, said.replace(str(tmp_path), "").encode(), b"") == []
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_no_yaml_shows_no_line_of_itself(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("teacher:\n  api_key_env: %sk-live-0123456789abcdef\n")
    said = run(tmp_path, CONTROL, [["check", str(tmp_path / "bad.yaml")]]).decode()
    assert "no usable YAML: found character '%' that cannot start any token, in line 2, column 16" in said
    assert "sk-live" not in said
    said = run(
        tmp_path, CONTROL, [["check", "quickstart", "--set", "teacher.api_key_env=%sk-live-0123456789"]]
    ).decode()
    assert "--set teacher.api_key_env: the value is no usable YAML" in said
    assert "sk-live" not in said


LITERALS: list[dict[str, Any]] = [
    {"base_url": "http://127.0.0.1:9/v1?pwd=hunter2hunter2"},
    {"base_url": "http://127.0.0.1:9/v1?a=1&sub-key=hunter2hunter2"},
    {"sampling": {"extra_body": {"token": "hunter2hunter2", "top_k": 3}}},
    {"sampling": {"extra_body": {"auth": [{"apiKey": "hunter2hunter2"}]}}},
]


@pytest.mark.slow
@pytest.mark.parametrize("section", LITERALS)
def test_a_literal_secret_is_warned_of_and_struck_out_of_what_is_kept(tmp_path: Path, section: dict[str, Any]) -> None:
    home = tmp_path / "run"
    said = checked(tmp_path, section, "check RECIPE", f"run RECIPE --run-dir {home}", f"show {home}", f"collect {home}")
    assert said.count("a secret is written in the recipe itself") == 2
    assert "was struck out of this copy of the recipe; run the recipe itself" in said
    assert leaks("hunter2hunter2", said.encode() + written(tmp_path), b"") == []
    assert "***" in (home / "recipe.yaml").read_text()


def test_names_of_tokens_that_are_no_secrets_are_kept(tmp_path: Path) -> None:
    body = {
        "stop_token": "<|im_end|>",
        "language_code": "en-GB-oxendict",
        "key_value": 3,
        "guided_regex": "^\\$[0-9]+$x",
    }
    said = checked(tmp_path, {"sampling": {"extra_body": body}}, f"run RECIPE --run-dir {tmp_path / 'run'}")
    assert "a secret stands" not in said
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["teacher"]["sampling"]["extra_body"] == body


def test_a_short_secret_is_warned_of_once_and_is_not_struck(tmp_path: Path) -> None:
    with EchoServer("fine", "answer") as server:
        said = run(tmp_path, "fine", road(tmp_path, recipe(tmp_path, server.url, "api_key_env"))).decode()
    assert said.count("the value of THE_KEY has fewer than 8 characters") == 1
    rows = (tmp_path / "run" / "sessions.jsonl").read_text()
    assert "the key is fine, they say" in rows


def test_a_variable_stands_in_a_key_and_its_value_leaves() -> None:
    provider = OpenAIProvider("http://127.0.0.1:9/$TENANT/v1?pwd=$THE_KEY", "m")
    body = {"token": "$THE_KEY", "text": "a $THE_KEY"}
    request = Request(role="teacher", prompt="x", sampling=Sampling(extra_body=body))
    before = key(request, provider.endpoint)
    with environment({"THE_KEY": "sk/1+2=", "TENANT": "a b"}):
        assert provider._address("/models") == "http://127.0.0.1:9/a%20b/v1/models?pwd=sk%2F1%2B2%3D"
        assert provider.body(request)[1] == {"model": "m", "prompt": "x", "token": "sk/1+2=", "text": "a $THE_KEY"}
    assert provider.endpoint.url == "http://127.0.0.1:9/$TENANT/v1"
    assert key(request, provider.endpoint) == before


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("password", ["hunter2!", "p%40ss%2Fw/rd:1"])
def test_the_password_of_a_proxy_is_not_shown(tmp_path: Path, name: str, password: str) -> None:
    url = f"http://alice:{password}@proxy.example:3128"
    with environment({name: url, "FTP_PROXY": "a-token-alone@proxy.example"}):
        out = run(tmp_path, "sk-live/abc+def=0123", [["check", f"{url}/recipe.yaml"], ["show", f"alice:{password}"]])
    bare = unquote(password)
    header = base64.b64encode(f"alice:{bare}".encode()).decode()
    shown = redaction.strike(f"{url} {bare} {header} a-token-alone")
    assert shown == "http://***@proxy.example:3128 *** *** ***"
    assert b"proxy.example" in out
    assert password.encode() not in out


def test_a_variable_in_the_host_is_refused(tmp_path: Path) -> None:
    said = checked(tmp_path, {"base_url": "http://$HOST/v1"}, "check RECIPE")
    assert "base_url names a variable in its host; only its path and query may" in said
