"""Whole runs against remote teachers, through the command line: several teachers, money, reuse, misses, batches."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.engine.journal.store import Journal
from distill.engine.mock_server import MockServer, asking, status
from distill.run.endpoints import weighted_choice
from tests.support.cli import here
from tests.support.engine.batch_server import BatchServer

pytestmark = pytest.mark.slow

KEY = "sk-a-secret-key-of-ours"


def distill(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return here(folder, *arguments, THE_KEY=KEY, DISTILL_CACHE=str(folder / "c"))


def teacher(url: str, name: str = "m", **options: Any) -> dict[str, Any]:
    sampling = {"max_tokens": 10, **options.pop("sampling", {})}
    return {"model": name, "base_url": url, "terms": "ours", "api_key_env": "THE_KEY", "sampling": sampling, **options}


def write(folder: Path, teachers: Any, *, name: str = "one", tasks: int = 20, **more: Any) -> Path:
    rows = [
        {"id": f"t{n}", "instruction": f"Question {n}.", "meta": {"kind": "code" if n % 4 == 0 else "prose"}}
        for n in range(tasks)
    ]
    (folder / "tasks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    collect = {"strategy": "answer", "tasks": "tasks.jsonl", "concurrency": 4, "test": 0, **more.pop("collect", {})}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "teacher": teachers, "collect": collect, **more}), encoding="utf-8")
    return path


def sessions(folder: Path, name: str = "one") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / name / "sessions.jsonl").read_text().splitlines()]


def record(folder: Path, name: str = "one") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / name / "run.json").read_text())
    return found


PRICE = {"input": 1.0, "output": 1000.0}


def test_several_teachers_share_the_tasks_by_kind_and_weight_each_asked_in_its_way(tmp_path: Path) -> None:
    with MockServer() as server:
        teachers = [
            teacher(server.url, "coder", kinds=["code"], sampling={"temperature": 0}, price=PRICE),
            teacher(server.url, "big", weight=3, sampling={"extra_body": {"top_k": 5}}, price=PRICE),
            teacher(server.url, "small", price=PRICE),
        ]
        write(tmp_path, teachers, tasks=200)
        assert distill(tmp_path, "run", "one.yaml").returncode == 0
        asked = {body["messages"][-1]["content"]: body for body in server.bodies}
    rows = sessions(tmp_path)
    assert [row["id"] for row in rows] == [f"t{n}" for n in range(200)]
    for row in rows:
        body = asked[row["messages"][0]["content"]]
        assert row["meta"]["teacher"] == body["model"]
        assert (body["model"] == "coder") == (int(row["id"][1:]) % 4 == 0)
        assert body.get("temperature") == (0 if body["model"] == "coder" else None)
        assert body.get("top_k") == (5 if body["model"] == "big" else None)
    shares = Counter(row["meta"]["teacher"] for row in rows)
    assert 90 <= shares["big"] <= 135
    costs = record(tmp_path)["stages"]["collect"]["costs"]
    assert {(cost["teacher"], cost["outcome"], cost["sends"]) for cost in costs} == {
        (f"teacher:{name}", "kept", count) for name, count in shares.items()
    }
    shown = distill(tmp_path, "show", "runs/one").stdout
    assert "teacher:big" in shown
    assert "USD" in shown
    assert [one["name"] for one in record(tmp_path)["teachers"]] == ["coder", "big", "small"]


def test_who_answers_depends_on_the_task_alone() -> None:
    picked = Counter(weighted_choice([3.0, 1.0], f"7:t{n}") for n in range(4000))
    assert picked[0] / 4000 == pytest.approx(0.75, abs=0.03)
    once, again = ([weighted_choice([3.0, 1.0], f"7:t{n}") for n in range(5)] for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    ("teachers", "line"),
    [
        ([], "the list is empty"),
        ([{}, {}], 'two are called "m"; give each a `name`'),
        ([{"name": "a", "kinds": ["x"]}, {"name": "b", "kinds": ["y"]}], "leave one without `kinds`"),
        ([{"name": "a", "wieght": 1}, {"name": "b"}], 'unknown key "teacher.0.wieght"; did you mean "weight"?'),
        ([{"sampling": {"extra_body": {"n": 3}}}], "extra_body.n: one answer per request is kept"),
    ],
)
def test_teachers_that_do_not_fit_are_one_line(tmp_path: Path, teachers: list[dict[str, Any]], line: str) -> None:
    write(tmp_path, [{**teacher("http://127.0.0.1:1/v1"), **options} for options in teachers])
    finished = distill(tmp_path, "check", "one.yaml")
    assert finished.returncode == 2
    assert line in finished.stderr
    assert len(finished.stderr.splitlines()) == 1, finished.stderr


def test_a_password_in_an_address_is_refused_before_it_is_written(tmp_path: Path) -> None:
    write(tmp_path, {**teacher("http://host/v1"), "base_url": "http://user:hunter2hunter2@host/v1"})
    finished = distill(tmp_path, "run", "one.yaml")
    assert finished.returncode == 2
    assert "and a recipe is written into the run folder" in finished.stderr
    assert "hunter2" not in finished.stderr
    assert not (tmp_path / "runs").exists()


def test_a_budget_stops_with_what_is_finished_and_more_money_goes_on(tmp_path: Path) -> None:
    with MockServer() as server:
        write(tmp_path, teacher(server.url, price=PRICE), budget_usd=0.05)
        stopped = distill(tmp_path, "run", "one.yaml")
        assert stopped.returncode == 3
        assert "the budget of USD 0.05 is used up" in stopped.stderr
        kept = len(sessions(tmp_path))
        assert 5 <= kept == server.count
        assert record(tmp_path)["stages"]["collect"]["status"] == "partial"
        assert record(tmp_path)["stages"]["collect"]["usd"] <= 0.05
        again = distill(tmp_path, "run", "one.yaml")
        assert again.returncode == 3
        assert server.count == kept, "the cap is the run's, over all its invocations"
        assert distill(tmp_path, "run", "one.yaml", "--set", "budget_usd=1").returncode == 0
        assert len(sessions(tmp_path)) == server.count == 20


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"price": None}, "a budget of USD 1.00 needs a price, and teacher has none"),
        ({"price": PRICE, "sampling": {"max_tokens": None}}, "a budget needs sampling.max_tokens for the teacher"),
    ],
)
def test_a_cap_that_could_not_hold_is_refused(tmp_path: Path, options: dict[str, Any], line: str) -> None:
    with MockServer() as server:
        write(tmp_path, teacher(server.url, **options), budget_usd=1)
        finished = distill(tmp_path, "run", "one.yaml")
        assert finished.returncode == 2
        assert line in finished.stderr
        assert server.count == 0
    assert "the run will refuse" in distill(tmp_path, "check", "one.yaml").stdout


def test_another_runs_answers_serve_again(tmp_path: Path) -> None:
    with MockServer() as server:
        write(tmp_path, teacher(server.url))
        assert distill(tmp_path, "run", "one.yaml").returncode == 0
        write(tmp_path, teacher(server.url), name="two", tasks=30, reuse=["one"])
        assert distill(tmp_path, "run", "two.yaml").returncode == 0
        assert server.count == 30
        assert len(sessions(tmp_path, "two")) == 30
    write(tmp_path, teacher(server.url), name="three", reuse=["nowhere"])
    finished = distill(tmp_path, "check", "three.yaml")
    assert (finished.returncode, "nowhere is no run with a journal" in finished.stderr) == (2, True)


def test_explain_miss_names_the_field_that_differs(tmp_path: Path) -> None:
    with MockServer() as server:
        write(tmp_path, teacher(server.url, sampling={"temperature": 0.7}))
        assert distill(tmp_path, "run", "one.yaml").returncode == 0

        def explained(*changes: str) -> str:
            sets = [part for change in changes for part in ("--set", change)]
            finished = distill(tmp_path, "explain-miss", "runs/one", *sets, "--limit", "1")
            assert finished.returncode == 0, finished.stderr
            return finished.stdout

        assert "nothing would be asked again" in explained()
        assert "request.sampling.temperature: 0.2 was 0.7" in explained("teacher.sampling.temperature=0.2")
        assert 'endpoint.model: "other" was "m"' in explained("teacher.model=other")
        system = explained("collect.system=Be brief.")
        assert 'request.messages[0].role: "system" was "user"' in system
        two = explained("teacher.sampling.seed=3", "teacher.sampling.extra_body={top_k: 4}")
        assert "in 2 fields" in two
        assert "request.sampling.seed: 3 was its default" in two
        assert server.count == 20


def test_clean_loses_nothing(tmp_path: Path) -> None:
    with MockServer() as server:
        write(tmp_path, teacher(server.url))
        distill(tmp_path, "run", "one.yaml")
        before = sessions(tmp_path)
        (tmp_path / "runs/one/lm_eval").mkdir()
        (tmp_path / "runs/one/lm_eval/.base.jsonl.abcd1234").write_text("half a file")
        finished = distill(tmp_path, "clean", "runs/one")
        assert "1 leftovers removed (11 bytes)" in finished.stdout
        distill(tmp_path, "collect", "runs/one", "--set", "collect.max_failed=0.5")
        assert sessions(tmp_path) == before
        assert server.count == 20


def test_the_key_is_in_no_file_and_no_output(tmp_path: Path) -> None:
    echo = asking("Question 3", status(500, body={"error": {"message": f"no: Bearer {KEY}"}}))
    with MockServer(fault=echo) as server:
        write(tmp_path, teacher(server.url), collect={"attempts": 1})
        finished = distill(tmp_path, "--debug", "run", "one.yaml")
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in finished.stdout + finished.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_batch_run_may_end_between_its_steps_and_come_back(tmp_path: Path) -> None:
    with BatchServer() as server:
        write(tmp_path, teacher(server.url, price=PRICE), collect={"mode": "batch"}, budget_usd=5)
        left = distill(tmp_path, "collect", "one.yaml", "--no-wait")
        assert left.returncode == 0, left.stderr
        assert "run the same command again later" in left.stderr
        assert record(tmp_path)["stages"]["collect"]["status"] == "partial"
        live = distill(tmp_path, "collect", "runs/one", "--set", "collect.mode=live")
        assert (live.returncode, "1 batches are open at the provider" in live.stderr) == (2, True), live.stderr
        for _ in range(20):
            if (done := distill(tmp_path, "collect", "one.yaml", "--no-wait")).returncode == 0 and len(
                sessions(tmp_path)
            ) == 20:
                break
        assert record(tmp_path)["stages"]["collect"]["status"] == "done", done.stderr
        assert max(server.submitted.values()) == 1
    assert [row["id"] for row in sessions(tmp_path)] == [f"t{n}" for n in range(20)]
    with Journal.open(tmp_path / "runs/one/journal.sqlite", read_only=True) as journal:
        assert {cost.outcome: cost.sends for cost in journal.costs()} == {"kept": 20}


def test_an_expansion_refuses_a_batch(tmp_path: Path) -> None:
    write(
        tmp_path,
        teacher("http://127.0.0.1:1/v1"),
        collect={"mode": "batch"},
        expand={"strategy": "self_instruct", "seeds": "seeds/general.jsonl", "tasks": 5},
    )
    finished = distill(tmp_path, "check", "one.yaml")
    assert finished.returncode == 2
    assert "each request of expand depends on earlier answers" in finished.stderr
