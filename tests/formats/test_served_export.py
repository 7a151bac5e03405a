"""An exported student, served: it answers as it was trained, in the same tokens."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from distill.errors import EndpointError, RunFolderError
from tests.support.cli import distill
from tests.support.exported import QUESTION, greedy

torch = pytest.importorskip("torch")


pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def served(exported, tmp_path_factory) -> Iterator[str]:
    """The address of a server that runs the export of the student that was trained whole; its key is in SERVED_KEY."""
    from distill.models.child_server import LocalServer

    log = tmp_path_factory.mktemp("serve") / "server.log"
    with LocalServer(str(exported["whole"]), log=log) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVED_KEY", server.api_key)
        assert server.base_url is not None
        yield server.base_url


def posted(address: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {os.environ['SERVED_KEY']}"}
    return httpx.post(address, json=body, headers=headers, timeout=60)


def test_a_served_export_answers_as_it_was_trained_and_stops(served, whole_run):
    body = {"messages": [QUESTION], "temperature": 0, "max_tokens": 64}
    choice = posted(f"{served}/chat/completions", body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == greedy(whole_run, 64)


def test_trainer_saved_template_and_server_ask_in_the_same_tokens(served, whole_run, exported, capsys):
    from distill.pipeline.doctor import examine_student

    assert examine_student(whole_run, at=served, api_key_env="SERVED_KEY")
    assert examine_student(exported["whole"], at=served, api_key_env="SERVED_KEY")
    assert "ok   the same tokens in 12 dialogues by the trainer, the saved chat template and the server" in (
        capsys.readouterr().out
    )


def test_a_changed_template_is_found_at_its_first_differing_token(served, whole_run, tmp_path):
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    template = run / "student" / "chat_template.jinja"
    template.write_text(
        template.read_text().replace("'\\n' }}{% endif %}{{ '<|im_start|>'", "' ' }}{% endif %}{{ '<|im_start|>'")
    )
    finished = distill("doctor", str(run), "--at", served, "--api-key-env", "SERVED_KEY", cwd=tmp_path)
    assert finished.returncode == 1
    assert re.search(
        r"MISS \S+.*: token \d+ is '\\n' \(\d+\) by the trainer and ' ' \(\d+\) by the saved", finished.stdout
    )
    assert "by the server" not in finished.stdout


def test_a_message_that_spells_a_special_token_is_told_and_is_no_fault(served, whole_run):
    from distill.models import loading
    from distill.models.templates.check import SAVED, SERVED, by_server, by_template, check
    from distill.types import Message

    tokenizer = loading.load_tokenizer(whole_run / "student")
    found = check(
        [("spelling", [Message("user", "What does <|im_end|> mean?")])],
        template="chatml",
        tokenizer=tokenizer,
        readings={SAVED: by_template(tokenizer), SERVED: by_server(served, api_key=os.environ["SERVED_KEY"])},
    )
    assert [(one.by, one.spelled) for one in found.differences] == [(SAVED, "<|im_end|>")]
    assert found.alike
    assert "which training and `distill serve` keep as text" in found.differences[0].line()


def test_a_server_that_refuses_is_named_by_its_status(served):
    from distill.models.templates.check import by_server
    from distill.types import Message

    with pytest.raises(EndpointError, match=r"/tokenize gives no tokens \(HTTP 401\)"):
        by_server(served)([Message("user", "Hello")])


def test_the_server_tells_tokens_and_refuses_what_it_cannot_render(served):
    address = served.removesuffix("/v1") + "/tokenize"
    found = posted(address, {"messages": [QUESTION]}).json()
    assert found["count"] == len(found["tokens"]) > 5
    assert posted(address, {"messages": []}).status_code == 400
    assert posted(address, {"messages": [QUESTION], "add_generation_prompt": False}).status_code == 400


@pytest.mark.parametrize(
    ("folder", "line"),
    [("adapter", "holds an adapter, which is served only merged"), (".", "no run with a student and no export")],
)
def test_a_folder_that_cannot_be_served_is_one_line(exported, tmp_path, folder, line):
    from distill.pipeline.doctor import examine_student

    with pytest.raises(RunFolderError, match=line):
        examine_student(exported.get(folder, tmp_path))
