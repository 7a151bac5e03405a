"""What collect makes of answers that are odd: labels, failures that can be asked again, and never a lost run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.collect.provenance import MANY_PROMPTS, Witness, with_same_answers
from distill.core.hashing import canonical
from distill.core.jsonl import read_jsonl, read_sessions
from distill.engine.journal.keys import key
from distill.engine.journal.records import answered
from distill.engine.journal.store import Journal
from distill.engine.mock_server import MockServer, question
from distill.engine.providers import openai
from distill.errors import DistillError
from distill.pipeline.runner import run_recipe
from distill.run.context import RunOptions
from distill.types import Completion, Message, Request, Sampling, Session


def reply(text: Any, finish: Any = "stop", model: str = "m", **message: Any) -> dict[str, Any]:
    turn = {"role": "assistant", "content": text, **message}
    return {"model": model, "choices": [{"message": turn, "finish_reason": finish}], "usage": None}


def collected(
    folder: Path, url: str, tasks: list[str], *, rules: Any = None, collect: Any = None, **options: Any
) -> Path:
    (folder / "tasks.txt").write_text("\n".join(tasks) + "\n")
    recipe = {
        "name": "odd",
        "teacher": {"model": "m", "base_url": url, "terms": "mine"},
        "collect": {"tasks": "tasks.txt", "test": 0, "max_failed": 1.0, "attempts": 1, **(collect or {})},
        **({"curate": rules} if rules else {}),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    stages = ["collect", "curate"] if rules else ["collect"]
    return run_recipe(folder / "recipe.yaml", run_dir=folder / "run", stages=stages, options=RunOptions(**options))


def sessions(run: Path) -> dict[str, Session]:
    return {session.messages[-2].content: session for session in read_sessions(run / "sessions.jsonl")}


def reasons(run: Path) -> list[str]:
    return [row["failures"][-1]["reason"] for row in read_jsonl(run / "failures.jsonl")]


def test_an_unknown_end_another_model_and_a_common_answer_are_labelled_and_can_be_dropped(tmp_path, capsys):
    answers = {
        "plain": reply("Rain falls."),
        "open": reply("Rain falls on", None),
        "new": reply("Rain falls on the", "weather"),
        "other": reply("Rain falls on it.", model="m-mini"),
        "dated": reply("Rain falls at noon.", model="m-2024-08-06"),
    }
    same = [f"same {number}" for number in range(MANY_PROMPTS)]
    with MockServer(answer=lambda body: answers.get(question(body)) or reply("I am here to help.")) as server:
        run = collected(tmp_path, server.url, [*answers, *same], rules=[{"filter": "label"}])
    found = {
        prompt: (one.meta["labels"], one.meta.get("finish"), one.meta.get("model"))
        for prompt, one in sessions(run).items()
    }
    assert found == {
        "plain": ([], None, None),
        "open": (["finish_unknown"], "none", None),
        "new": (["finish_unknown"], "weather", None),
        "other": (["other_model"], None, "m-mini"),
        "dated": ([], None, None),
        **{prompt: (["same_answer"], None, None) for prompt in same},
    }
    kept = {session.messages[0].content for session in read_sessions(run / "kept.jsonl")}
    assert kept == {"plain", "dated"}
    said = capsys.readouterr().err
    assert said.count('answers as "m-mini" where "m" was asked') == 1
    assert f"{MANY_PROMPTS} sessions share their answer" in said


def test_short_labels_and_few_equal_answers_are_common():
    with_many = [Session(str(n), (Message("user", f"{n}"), Message("assistant", "Not Equal"))) for n in range(20)]
    few = [Session(str(n), (Message("user", "same"), Message("assistant", "I am here to help."))) for n in range(20)]
    for rows in (with_many, few):
        assert with_same_answers(rows, lambda session: "t") == (rows, "")


def test_a_loser_of_several_samples_labels_no_session():
    def flow():
        answers = yield tuple(Request(role="teacher", prompt="q", replica=number) for number in range(2))
        keys = [answer.key for answer in answers]
        return Session("s", (), {"keys": keys, "others": [{"key": keys[1]}]})

    def played(finishes: list[str]) -> Session:
        running = Witness("m").watch(flow())
        next(running)
        with pytest.raises(StopIteration) as end:
            running.send(tuple(Completion(key=str(n), text="t", finish=finish) for n, finish in enumerate(finishes)))
        return end.value.value

    assert "labels" not in played(["stop", "unknown"]).meta
    assert played(["unknown", "stop"]).meta["labels"] == ["finish_unknown"]


def test_what_is_no_answer_is_asked_again_by_retry_failed_alone_and_once(tmp_path):
    odd = {
        "empty": reply(""),
        "blank": reply(None),
        "call": reply(None, "tool_calls"),
        "thoughts": reply("", "length", reasoning_content="Well"),
        "withheld": reply("A", "content_filter"),
        "good": reply("Rain."),
    }
    with MockServer(answer=lambda body: odd[question(body)]) as server:
        run = collected(tmp_path, server.url, list(odd))
        first = ["empty", "empty", "tool_call", "only_thoughts", "filtered"]
        assert (reasons(run), server.count) == (first, 6)
        collected(tmp_path, server.url, list(odd), redo=["collect"])
        assert (reasons(run), server.count) == (first, 6)
        collected(tmp_path, server.url, list(odd), retry_failed=True)
        assert (reasons(run), server.count) == (first, 11)
        odd |= {name: reply(f"The answer to {name}.") for name in odd}
        collected(tmp_path, server.url, list(odd), retry_failed=True)
        assert (reasons(run), server.count) == ([], 16)
        collected(tmp_path, server.url, list(odd), redo=["collect"])
        assert server.count == 16
    assert sessions(run)["empty"].messages[-1].content == "The answer to empty."
    assert sessions(run)["good"].messages[-1].content == "Rain."


def test_half_a_pair_in_thoughts_ends_no_run(tmp_path):
    halves = {
        "one": {"reasoning_content": "a \ud83d"},
        "two": {"reasoning": "\udfff b"},
        "three": {"thinking": "\ud800c"},
    }
    with MockServer(answer=lambda body: reply("Rain \udc00.", **halves[question(body)])) as server:
        run = collected(tmp_path, server.url, list(halves))
    assert {prompt: one.meta["thoughts"] for prompt, one in sessions(run).items()} == {
        "one": "a \ufffd", "two": "\ufffd b", "three": "\ufffdc",
    }  # fmt: skip
    assert {one.messages[-1].content for one in sessions(run).values()} == {"Rain \ufffd."}


OLD = {
    "half": ("Rain.", "stop", reply("Rain.", reasoning_content="a \ud83d b")),
    "broken": ("Rain", "unknown", reply("Rain", "error")),
    "cut": ("Rain falls", "unknown", reply("Rain falls", "MAX_TOKENS")),
    "part": ("{'type': 'text', 'text': 'Rain.'}", "stop", reply({"type": "text", "text": "Rain."})),
    "list": ("", "stop", reply(["Rain."])),
    "number": ("12", "stop", reply(12)),
    "deep": ("Rain.", "stop", reply("Rain.", reasoning=[[[{"text": ["\udc00"]}]]])),
    "none": ("", "stop", {"choices": [None], "model": ["m"]}),
}


def test_a_journal_of_an_earlier_version_is_replayed_without_a_send(tmp_path):
    url = "http://127.0.0.1:9/v1"
    (tmp_path / "run").mkdir()
    endpoint = openai.OpenAIProvider(url, "m").endpoint
    with Journal.open(tmp_path / "run" / "journal.sqlite") as journal:
        for prompt, (text, finish, raw) in OLD.items():
            request = Request(role="teacher", messages=(Message("user", prompt),), sampling=Sampling())
            completion = Completion(key=key(request, endpoint), text=text, finish=finish, raw=raw)
            journal.write(answered(completion, canonical(request), "answer", endpoint, stage="collect")).result(5)
    run = collected(tmp_path, url, list(OLD))
    found = {prompt: (one.messages[-1].content, one.meta["truncated"]) for prompt, one in sessions(run).items()}
    assert found == {
        "half": ("Rain.", False), "cut": ("Rain falls", True), "part": ("Rain.", False), "list": ("Rain.", False),
        "deep": ("Rain.", False),
    }  # fmt: skip
    assert reasons(run) == ["aborted", "malformed", "empty"]


STRATEGY = """
from distill import BaseOptions, Message, Request, Session


class Odd:
    class Options(BaseOptions):
        pass

    def __init__(self, options, *, sampling=None):
        pass

    def flow(self, task, rng):
        answer = yield Request(role="teacher", messages=(Message("user", task.instruction),))
        endless = {}
        endless["x"] = endless
        metas = {"half": {"x": "\\ud83d"}, "key": {(1, 2): 3}, "endless": endless}
        return Session(task.id, (Message("user", task.instruction), Message("assistant", answer.text)),
                       metas.get(task.instruction, {}))
"""


def test_a_session_that_no_file_can_hold_is_a_failure_with_a_reason(tmp_path, monkeypatch):
    (tmp_path / "odd_parts.py").write_text(STRATEGY)
    monkeypatch.syspath_prepend(str(tmp_path))
    tasks = ["half", "good", "key", "endless"]
    with MockServer() as server:
        options = {"strategy": "odd_parts:Odd"}
        run = collected(tmp_path, server.url, tasks, collect=options, allowed=["odd_parts"])
    assert list(sessions(run)) == ["good", "key"]
    assert reasons(run) == ["unstorable"] * 2


def test_a_failure_of_too_many_names_what_the_endpoint_said(tmp_path):
    with (
        MockServer(answer=lambda body: reply("Rain", "network_error")) as server,
        pytest.raises(DistillError) as caught,
    ):
        collected(tmp_path, server.url, ["one", "two"], collect={"max_failed": 0.0})
    assert 'the finish_reason "network_error"' in str(caught.value)
