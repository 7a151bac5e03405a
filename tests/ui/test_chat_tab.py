"""The chat of the page: nothing is loaded or asked before a click, and the budget of the run holds in it too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.engine.mock_server import MockServer
from distill.pipeline.chat import outlook
from tests.support.run_folder import change, write_run
from tests.ui.page_server import Served, serving

pytestmark = pytest.mark.slow

RECIPE = """
name: quickstart
budget_usd: 1.00025
teacher:
  model: m
  base_url: {url}
  terms: none
  price: {{input: 0, output: 1}}
  sampling: {{max_tokens: 200}}
student: {{model: smollm2}}
train: {{method: qlora}}
expand: {{seeds: seeds/general.jsonl, tasks: 3}}
"""


def chatting(folder: Path, url: str) -> Path:
    """A run whose teacher answers at `url`, with USD 0.00025 left: one answer of 200 tokens at most, not two."""
    run = write_run(folder / "a", compare=False)
    (run / "recipe.yaml").write_text(RECIPE.format(url=url))
    (run / "student" / "adapter_model.safetensors").write_bytes(b"")
    (run / "student" / "adapter_config.json").write_text("{}")

    def spent(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "sent": {"collect": {"sends": 1, "usd": 1.0}}}

    change(run / "run.json", spent)
    return run


def said(page: Served, line: str) -> list[dict[str, str]]:
    body = {"run": "a", "line": line, "sides": ["teacher", "nobody"], "system": "Be brief.", "temperature": 0}
    status, text = page.ask("/api/chat/ask", body=body)
    assert status == 200, text
    return [json.loads(one) for one in text.splitlines()]


def test_models_are_asked_only_after_a_click_and_within_the_budget(tmp_path: Path):
    def answer(body: Any) -> str:
        return "word " * 100

    with MockServer(answer=answer) as server, serving(tmp_path) as page:
        run = chatting(tmp_path, server.url)
        page.enter()
        before = page.get("/api/chat", run="a")
        assert before == {"is_open": False, "outlook": outlook(run)}
        assert "at most 200 tokens (USD 0.00020)" in before["outlook"][1]
        assert before["outlook"][2] == "USD 0.00025 of the budget of USD 1.00 are left."
        assert page.ask("/api/chat/ask", body={"run": "a", "line": "Hi", "sides": ["teacher"]})[0] == 409
        assert server.count == 0

        status, text = page.ask("/api/chat/open", body={"run": "a"})
        assert (status, json.loads(text)["sides"]) == (200, ["student", "base", "teacher"])
        assert server.count == 0
        [first] = said(page, "Hi")
        assert first["text"].startswith("word word")
        [second] = said(page, "Again")
        assert "the budget of USD 1.00 is used up" in second["text"]
        assert server.count == 1
        assert [one["content"] for one in server.bodies[0]["messages"]] == ["Be brief.", "Hi"]
        assert page.get("/api/chat", run="a")["turns"]["teacher"] == ["Hi", first["text"]]
        assert page.ask("/api/chat/close", body={})[0] == 200
        after = page.get("/api/chat", run="a")
        assert (after["is_open"], after["outlook"][2]) == (False, "USD 0.00015 of the budget of USD 1.00 are left.")


def test_a_run_without_a_student_says_so_in_place_of_a_button(tmp_path: Path):
    write_run(tmp_path / "a", train=False, compare=False)
    with serving(tmp_path) as page:
        state = page.enter().get("/api/chat", run="a")
    assert (state["is_open"], "student" in state["fault"]) == (False, True)
