"""Stage collect against the shipped fake teacher: order, failures, interruption, and reading a file of tasks."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.collect.stage import TeacherChoice, collect
from distill.collect.strategies.answer import Answer
from distill.core.jsonl import read_jsonl, read_sessions
from distill.engine import EngineStopped, StoppedByBudget
from distill.engine.budget import Budget, TokenPrice
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.providers import ProviderError, Reply
from distill.engine.providers.scripted import Scripted
from distill.errors import SeedsError, StageIncomplete
from distill.formats.importers import load_tasks
from distill.types import Request, Sampling, Task, Usage
from tests.support.engine.engines import bound

TASKS = [Task(f"task-{number:05}", f"Say the number {number}.") for number in range(20)]


def echo(request: Request) -> str:
    return f"You said: {request.messages[-1].content}"


def failing(numbers: set[int], error: ProviderError):
    def script(request: Request) -> str | ProviderError:
        (number,) = re.findall(r"\d+", request.messages[-1].content)
        return error if int(number) in numbers else echo(request)

    return script


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


def answer(folder: Path, journal: Journal, provider: Scripted, *, tasks=TASKS, max_failed=0.05, **engine):
    return collect(
        folder,
        tasks=tasks,
        choose=lambda task: TeacherChoice(
            "teacher", "scripted", Answer(Answer.Options(), sampling=Sampling(max_tokens=32))
        ),
        strategy_name="answer",
        seed=7,
        engine=Engine(journal, bound(teacher=provider), attempts=1, **engine),
        max_failed=max_failed,
    )


def ids(folder: Path) -> list[str]:
    return [session.id for session in read_sessions(folder / "sessions.jsonl")]


def failures(folder: Path) -> list[dict]:
    return list(read_jsonl(folder / "failures.jsonl"))


def test_sessions_are_in_task_order_whatever_arrives_first(tmp_path, journal):
    answer(tmp_path, journal, Scripted(echo, latency_seconds=lambda request: random.random() / 50), concurrency=10)
    assert ids(tmp_path) == [task.id for task in TASKS]


def test_a_session_names_task_strategy_teacher_and_key(tmp_path, journal):
    answer(tmp_path, journal, Scripted(echo), tasks=TASKS[:1])
    (session,) = read_sessions(tmp_path / "sessions.jsonl")
    assert session.messages[-1].content == "You said: Say the number 0."
    assert {key: session.meta[key] for key in ("task", "strategy", "teacher", "truncated")} == {
        "task": "task-00000",
        "strategy": "answer",
        "teacher": "scripted",
        "truncated": False,
    }
    assert re.fullmatch("[0-9a-f]{64}", session.meta["keys"][0])


def test_the_counts_say_what_came_of_the_tasks(tmp_path, journal):
    def half_cut(request: Request) -> Reply:
        return Reply(text=echo(request), finish="length" if random.Random(echo(request)).random() < 0.5 else "stop")

    status, counts = answer(tmp_path, journal, Scripted(half_cut))
    cut = sum(session.meta["truncated"] for session in read_sessions(tmp_path / "sessions.jsonl"))
    assert 0 < cut < 20
    assert (status, counts) == ("done", {"tasks": 20, "sessions": 20, "failed": 0, "truncated": cut})


def test_running_again_asks_nothing_and_writes_the_same(tmp_path, journal):
    answer(tmp_path, journal, Scripted(echo))
    before = (tmp_path / "sessions.jsonl").read_bytes()
    silent = Scripted([])
    answer(tmp_path, journal, silent)
    assert silent.requests == []
    assert (tmp_path / "sessions.jsonl").read_bytes() == before


def test_a_transient_failure_within_the_limit_makes_it_partial(tmp_path, journal):
    error = ProviderError("http_503", "overloaded", transient=True)
    status, counts = answer(tmp_path, journal, Scripted(failing({3}, error)))
    assert (status, counts["sessions"], counts["failed"]) == ("partial", 19, 1)
    assert failures(tmp_path)[0]["id"] == "task-00003"
    assert failures(tmp_path)[0]["failures"][0]["reason"] == "http_503"


def test_a_transient_failure_is_asked_again_by_the_next_run(tmp_path, journal):
    answer(tmp_path, journal, Scripted(failing({3}, ProviderError("timeout", "60 s", transient=True))))
    again = Scripted(echo)
    status, _ = answer(tmp_path, journal, again)
    assert (status, len(again.requests), failures(tmp_path)) == ("done", 1, [])
    assert ids(tmp_path) == [task.id for task in TASKS]


def test_a_failure_for_good_within_the_limit_is_done(tmp_path, journal):
    status, counts = answer(tmp_path, journal, Scripted(failing({3}, ProviderError("http_400", "too long"))))
    assert (status, counts["failed"]) == ("done", 1)


def test_more_failures_than_allowed_are_an_error_after_all_is_written(tmp_path, journal):
    error = ProviderError("http_503", "overloaded", transient=True)
    with pytest.raises(StageIncomplete, match=r"2 of 20 tasks failed \(such as http_503: overloaded\)") as raised:
        answer(tmp_path, journal, Scripted(failing({3, 4}, error)))
    assert "\n" not in str(raised.value)
    assert (len(ids(tmp_path)), len(failures(tmp_path))) == (18, 2)


def test_a_withheld_answer_is_a_failure_in_the_file(tmp_path, journal):
    answer(tmp_path, journal, Scripted(lambda request: Reply(finish="filtered")), tasks=TASKS[:1], max_failed=1.0)
    assert failures(tmp_path)[0]["failures"][0]["reason"] == "filtered"
    assert ids(tmp_path) == []


def test_a_spent_budget_keeps_what_is_finished(tmp_path, journal):
    budget = Budget({"teacher": TokenPrice(input=0.0, output=1000.0)}, cap_usd=0.2)
    priced = Scripted(lambda request: Reply(text=echo(request), usage=Usage(10, 20)))
    with pytest.raises(StoppedByBudget):
        answer(tmp_path, journal, priced, budget=budget, concurrency=1)
    finished = ids(tmp_path)
    assert 0 < len(finished) < 20
    assert finished == sorted(finished)


def test_an_endpoint_that_goes_away_keeps_what_is_finished(tmp_path, journal):
    gone = failing(set(range(5, 20)), ProviderError("http_401", "bad key", fatal=True))
    with pytest.raises(EngineStopped):
        answer(tmp_path, journal, Scripted(gone), concurrency=1)
    assert ids(tmp_path) == [task.id for task in TASKS[:5]]


# --- files of tasks


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    tasks = load_tasks(written(tmp_path, "prompts.txt", "Name a river.\n\n  Name a lake. \n"))
    assert [(task.id, task.instruction) for task in tasks] == [
        ("line-00001", "Name a river."),
        ("line-00003", "Name a lake."),
    ]


def test_json_lines_keep_their_ids_inputs_and_meta(tmp_path):
    row = {"id": "a", "instruction": "Translate.", "input": "Hallo", "meta": {"topic": "words"}, "other": 1}
    (task,) = load_tasks(written(tmp_path, "tasks.jsonl", json.dumps(row) + "\n"))
    assert task == Task("a", "Translate.", "Hallo", {"topic": "words"})


def test_a_number_is_an_id_and_a_null_no_input(tmp_path):
    (task,) = load_tasks(written(tmp_path, "tasks.jsonl", '{"id": 0, "instruction": "Hi there.", "input": null}'))
    assert (task.id, task.input) == ("0", "")


def test_a_json_array_is_not_taken_for_prompts(tmp_path):
    (task,) = load_tasks(written(tmp_path, "tasks.json", '[\n{"instruction": "Hi there."}\n]'))
    assert task == Task("line-00002", "Hi there.")


def test_a_line_separator_inside_a_prompt_ends_no_line(tmp_path):
    (task,) = load_tasks(written(tmp_path, "tasks.jsonl", '{"instruction": "One\u2028two."}\n'))
    assert task.instruction == "One\u2028two."


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{oops", "not JSON"),
        ("[1]", "tasks.jsonl:2"),
        ('{"topic": "Rivers."}', "`instruction`: field required"),
        ('{"instruction": 3}', "`instruction`"),
        ('{"instruction": " "}', "`instruction` is empty"),
        ('{"id": "a", "instruction": "Again."}', "the id a is already that of"),
    ],
)
def test_a_malformed_task_is_one_line_with_file_and_line(tmp_path, line, found):
    path = written(tmp_path, "tasks.jsonl", '{"id": "a", "instruction": "Name a river."}\n' + line)
    with pytest.raises(SeedsError, match=re.escape(found)) as raised:
        load_tasks(path)
    assert "tasks.jsonl:2: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_without_tasks_is_an_error(tmp_path):
    with pytest.raises(SeedsError, match="has no task"):
        load_tasks(written(tmp_path, "prompts.txt", "\n \n"))


def test_a_missing_file_of_tasks_is_an_error(tmp_path):
    with pytest.raises(SeedsError, match="cannot read the tasks"):
        load_tasks(tmp_path / "none.txt")
