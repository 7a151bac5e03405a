"""Every expansion on the shelf: the same tasks at any concurrency, after any stop, and as the beginning of more."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.collect.strategies import STRATEGIES as ANSWERING
from distill.core import assets
from distill.engine import StoppedShort
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.mock_server import Fault, MockServer, question, status
from distill.engine.providers.openai import OpenAIProvider
from distill.expand.seeds import load_seeds
from distill.expand.stage import expand
from distill.expand.strategies import STRATEGIES
from distill.pipeline.forecast import lines as check_lines
from distill.pipeline.parts import load_recipe
from distill.pipeline.runner import run_recipe
from tests.support.engine.engines import bound
from tests.support.tasks import read_tasks

ROOT = Path(__file__).resolve().parents[2]
SEEDS = load_seeds(assets.find("prompts/seeds/general.jsonl"))
VERBS = ("Explain", "Describe", "Compare", "Praise", "Recall", "Name", "Sketch", "Defend", "Rank", "Invent")
THINGS = ("rivers", "kites", "soups", "clocks", "owls", "tools", "coins", "songs", "hats", "tides", "bees", "tents")


def part(name: str) -> Any:
    module, _, attribute = STRATEGIES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


GROWTHS = sorted(name for name in STRATEGIES if hasattr(part(name), "propose"))


def sentence(rng: random.Random) -> str:
    return " ".join((rng.choice(VERBS), *rng.sample(THINGS, 4))) + "."


def continued(body: Mapping[str, Any], rng: random.Random) -> str:
    return "\n9. ".join([*(sentence(rng) for _ in range(4)), SEEDS[rng.randrange(len(SEEDS))].instruction])


def blocks(body: Mapping[str, Any], rng: random.Random) -> str:
    given = (rng.choice(("<noinput>", "some words")) for _ in range(4))
    written = [f"{sentence(rng)}\nInput:\n{each}\nOutput:\nan output" for each in given]
    return "\n###\n4. Instruction: ".join([*written, "one without an output"])


def evolved(body: Mapping[str, Any], rng: random.Random) -> str:
    if "Not Equal" in question(body):
        return rng.choice(("Equal", "Not Equal", "Not Equal"))
    if "#Rewritten instruction#" in question(body):
        return sentence(rng)
    return rng.choice(("I am sorry, I cannot.", "Rivers run to the sea.", "Owls see by night."))


def about_topics(body: Mapping[str, Any], rng: random.Random) -> str:
    if question(body).startswith("List"):
        return "\n".join(f"{number}. {rng.choice(THINGS)} {rng.choice(THINGS)}" for number in range(1, 6))
    return "\n".join(f"TASK {number}: {sentence(rng)}" for number in range(1, 4))


def marked(body: Mapping[str, Any], rng: random.Random) -> str:
    return "\n".join(f"TASK {number}: {sentence(rng)}" for number in range(1, 4))


def one_line(body: Mapping[str, Any], rng: random.Random) -> str:
    return rng.choice((sentence(rng), sentence(rng), "Answer this:"))


TEACHERS: dict[str, tuple[Callable[[Mapping[str, Any], random.Random], str], dict[str, Any]]] = {
    "alpaca": (blocks, {}),
    "attributes": (marked, {"attributes": {"persona": VERBS, "subject": THINGS}}),
    "evol_instruct": (evolved, {"window": 5, "rounds": 3}),
    "magpie": (one_line, {}),
    "self_instruct": (continued, {}),
    "topics": (about_topics, {"topic_requests": 3, "topics_each": 5, "new_tasks": 3}),
}
"""Who answers each strategy, from the body of a request and a chance that it alone decides; and options."""


def server_for(name: str, fault: Callable[[int, dict[str, Any]], Fault | None] = lambda *_: None) -> MockServer:
    def answer(body: Mapping[str, Any]) -> str:
        return TEACHERS[name][0](body, random.Random(json.dumps([question(body), body.get("seed")])))

    return MockServer(latency_seconds=lambda _: random.random() / 250, answer=answer, fault=fault)


def grow(folder: Path, name: str, url: str, *, target: int = 20, concurrency: int = 16) -> dict[str, Any]:
    """Expand into a folder whose journal stays there; the stage's counts."""
    folder.mkdir(exist_ok=True)
    growth = part(name)(part(name).Options(**TEACHERS[name][1]), seeds=SEEDS, seed=7, target=target)
    provider = OpenAIProvider(url, "m")
    with Journal.open(folder / "journal.sqlite") as journal:
        engine = Engine(journal, bound(teacher=provider, judge=provider), concurrency=concurrency, attempts=1)
        return dict(expand(folder, growth=growth, target=target, engine=engine))


def lines(folder: Path) -> list[str]:
    return (folder / "tasks.jsonl").read_text().splitlines()


def test_every_expansion_has_a_teacher_here():
    assert list(TEACHERS) == GROWTHS


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWTHS)
def test_the_tasks_are_the_same_at_any_concurrency_and_latency(tmp_path, name):
    with server_for(name) as server:
        for concurrency in (1, 64):
            grow(tmp_path / str(concurrency), name, server.url, concurrency=concurrency)
    for file in ("tasks.jsonl", "refused.jsonl"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "64" / file).read_bytes()
    assert len(lines(tmp_path / "1")) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWTHS)
def test_a_stopped_run_goes_on_to_the_same_tasks_and_then_asks_nothing(tmp_path, name):
    broken = {"from": 7}
    with server_for(name, lambda number, body: status(503) if number >= broken["from"] else None) as server:
        with pytest.raises(StoppedShort):
            grow(tmp_path / "stopped", name, server.url, target=40)
        beginning = lines(tmp_path / "stopped")
        broken["from"] = 10**9
        grow(tmp_path / "stopped", name, server.url, target=40)
        whole = lines(tmp_path / "stopped")
        asked = server.count
        grow(tmp_path / "stopped", name, server.url, target=40)
        assert (server.count, lines(tmp_path / "stopped")) == (asked, whole)
        grow(tmp_path / "unhindered", name, server.url, target=40)
    assert whole == lines(tmp_path / "unhindered")
    assert whole[: len(beginning)] == beginning


CHILDREN = """
import os, sys; from pathlib import Path; from tests.expand.test_expansions import grow
for name, url in zip(sys.argv[2::2], sys.argv[3::2]):
    if os.fork() == 0:
        folder = Path(sys.argv[1]) / name
        folder.mkdir()
        (folder / "pid").write_text(str(os.getpid()))
        grow(folder, name, url, target=40)
        os._exit(0)
sys.exit([os.WTERMSIG(os.wait()[1]) for _ in sys.argv[2::2]] != [9] * len(sys.argv[2::2]))
"""
"""Grows by each strategy in a process of its own, and fails unless every one is killed."""


def kills_at(number: int, folder: Path) -> Callable[[int, dict[str, Any]], None]:
    """Kills whoever grows in a folder as soon as so many requests have come from there."""

    def fault(count: int, body: dict[str, Any]) -> None:
        if count == number:
            os.kill(int((folder / "pid").read_text()), signal.SIGKILL)

    return fault


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder for each strategy, of a run that was killed at its ninth request."""
    folder = tmp_path_factory.mktemp("killed")
    with ExitStack() as servers:
        found = [(name, servers.enter_context(server_for(name, kills_at(9, folder / name))).url) for name in GROWTHS]
        arguments = [part for each in found for part in each]
        subprocess.run([sys.executable, "-c", CHILDREN, folder, *arguments], cwd=ROOT, check=True, timeout=120)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWTHS)
def test_a_killed_run_goes_on_to_the_same_tasks_and_buys_no_answer_twice(tmp_path, killed, name):
    assert not (killed / name / "tasks.jsonl").exists()
    with server_for(name) as server:
        grow(killed / name, name, server.url, target=40)
        grow(tmp_path, name, server.url, target=40)
    assert lines(killed / name) == lines(tmp_path)
    sends: Counter[str] = Counter()
    with Journal.open(killed / name / "journal.sqlite") as journal:
        for cost in journal.costs():
            sends[cost.outcome] += cost.sends
        answers = sum(1 for _ in journal.questions())
    assert sends == {"kept": answers, "in flight": sends["in flight"]}
    assert 0 < sends["in flight"] <= 2 * 16  # when it was killed, and when it was done


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWTHS)
def test_more_tasks_extend_the_same_list(tmp_path, name):
    with server_for(name) as server:
        grow(tmp_path / "few", name, server.url, target=7)
        grow(tmp_path / "many", name, server.url, target=40)
    assert lines(tmp_path / "many")[:7] == lines(tmp_path / "few")
    assert len(lines(tmp_path / "many")) == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWTHS)
def test_every_candidate_is_a_task_or_refused_for_a_reason(tmp_path, name):
    with server_for(name) as server:
        counts = grow(tmp_path, name, server.url)
    assert counts["candidates"] == counts["tasks"] + sum(counts["rejected"].values())
    refused = Counter(task.meta["refused"] for task in read_tasks(tmp_path / "refused.jsonl"))
    assert refused == Counter(counts["rejected"]) - Counter({"beyond_target": 10**9})


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWTHS)
def test_what_is_too_similar_names_a_text_before_it(tmp_path, name):
    with server_for(name) as server:
        grow(tmp_path, name, server.url, target=40)
    known = {task.id for task in read_tasks(tmp_path / "tasks.jsonl")} | {seed.id for seed in SEEDS}
    limit = part(name).Options(**TEACHERS[name][1]).rouge_l
    for task in read_tasks(tmp_path / "refused.jsonl"):
        nearest = task.meta["nearest"]
        assert (nearest is not None) == (task.meta["refused"] == "too_similar")
        assert nearest is None or (nearest["id"] in known and nearest["rouge_l"] > limit)


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWTHS)
def test_every_task_says_where_it_comes_from(tmp_path, name):
    with server_for(name) as server:
        grow(tmp_path, name, server.url)
    tasks = read_tasks(tmp_path / "tasks.jsonl")
    assert [task.id for task in tasks] == [f"task-{number:05}" for number in range(1, 21)]
    for task in tasks:
        assert task.meta["strategy"] == name
        assert re.fullmatch(r"[0-9a-f]{64}", task.meta["key"])
        assert isinstance(task.meta["request"], int)
        assert task.meta["lineage"] or name == "magpie"
        assert "fault" not in task.meta


def test_no_strategy_imports_another():
    parts = {path.partition(":")[0] for path in (ANSWERING | STRATEGIES).values()}
    files = [ROOT / f"{part.replace('.', '/')}.py" for part in parts]
    imports = {line for file in files for line in file.read_text().splitlines() if line.startswith("from distill.")}
    assert len(parts) >= 13
    assert {line for line in imports if line.split()[1] in parts} == set()


@pytest.mark.parametrize("name", GROWTHS)
def test_check_forecasts_every_expansion(name):
    options = part(name).Options(**TEACHERS[name][1])
    assert (
        min(options.cost.tasks, options.cost.prompt_tokens, options.cost.completion_tokens, options.cost.requests) > 0
    )


def recipe(folder: Path, name: str, url: str, *, tasks: int) -> Path:
    document = {
        "name": "grown",
        "teacher": {"model": "m", "base_url": url, "terms": "mine"},
        "expand": {"strategy": name, "tasks": tasks, **json.loads(json.dumps(TEACHERS[name][1]))},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWTHS)
def test_every_expansion_runs_from_a_recipe_that_names_a_teacher_only(tmp_path, name):
    with server_for(name) as server:
        run_recipe(recipe(tmp_path, name, server.url, tasks=12), run_dir=tmp_path / "run", stages=["expand"])
    assert len(lines(tmp_path / "run")) == 12


@pytest.mark.parametrize("name", GROWTHS)
def test_every_expansion_is_valid_in_a_recipe(tmp_path, name):
    options = TEACHERS[name][1]
    loaded = load_recipe(recipe(tmp_path, name, "http://127.0.0.1:9/v1", tasks=30))
    (tmp_path / "resolved.yaml").write_text(loaded.to_yaml())
    assert load_recipe(tmp_path / "resolved.yaml").document() == loaded.document()
    forecast = next(line for line in check_lines(loaded, probed=False) if line.startswith("expand: "))
    cost = part(name).Options(**options).cost
    assert f"expand: {-(-30 // cost.tasks) * cost.requests + cost.once} to " in forecast
    assert "more are possible (budget_usd is the cap)" in forecast
