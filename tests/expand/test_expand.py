"""Stage expand against the shipped fake teacher and the real engine: the same list however the answers arrive."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.core import assets
from distill.core.jsonl import read_tasks
from distill.engine import StoppedShort
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.providers import ProviderError
from distill.engine.providers.scripted import Scripted
from distill.expand.seeds import load_seeds
from distill.expand.stage import expand
from distill.expand.strategies.self_instruct import SelfInstruct
from distill.types import Request
from tests.support.engine.engines import bound

SEEDS = load_seeds(assets.find("prompts/seeds/general.jsonl"))
VERBS = ("Explain", "Describe", "Compare", "Praise", "Recall", "Name", "Sketch", "Defend", "Rank", "Invent")
THINGS = ("rivers", "kites", "soups", "clocks", "owls", "maps", "coins", "songs", "hats", "tides", "bees", "tents")


def teacher_text(request: Request) -> str:
    """Five tasks that depend on everything in the request, of which some are like those shown."""
    rng = random.Random(f"{request.replica}:{request.prompt}")
    items = [" ".join((rng.choice(VERBS), *rng.sample(THINGS, 4))) + "." for _ in range(4)]
    shown = re.findall(r"^\d+\. (.+)$", request.prompt or "", re.MULTILINE)
    return "\n9. ".join([*items, rng.choice(shown)])


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.sqlite") as opened:
        yield opened


def grow(folder: Path, journal: Journal, provider: Scripted, *, target: int = 24, concurrency: int = 8, **options):
    growth = SelfInstruct(SelfInstruct.Options(window=3, **options), seeds=SEEDS, seed=7, target=target)
    engine = Engine(journal, bound(teacher=provider), concurrency=concurrency, attempts=1, stage="expand")
    return expand(folder, growth=growth, target=target, engine=engine)


def instructions(folder: Path) -> list[str]:
    return [task.instruction for task in read_tasks(folder / "tasks.jsonl")]


def test_the_tasks_asked_for_are_written_in_order(tmp_path, journal):
    grow(tmp_path, journal, Scripted(teacher_text))
    tasks = read_tasks(tmp_path / "tasks.jsonl")
    assert [task.id for task in tasks] == [f"task-{number:05}" for number in range(1, 25)]


def test_the_counts_account_for_every_candidate(tmp_path, journal):
    counts = grow(tmp_path, journal, Scripted(teacher_text))
    assert counts["candidates"] == counts["tasks"] + sum(counts["rejected"].values())
    assert (counts["seeds"], counts["tasks"], counts["failed"]) == (len(SEEDS), 24, 0)
    assert counts["rejected"]["too_similar"] >= counts["requests"] // 2


def test_the_list_is_the_same_at_any_concurrency_and_latency(tmp_path):
    lists = []
    for number, (concurrency, latency) in enumerate([(1, 0.0), (8, lambda request: random.random() / 50)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Journal.open(folder / "journal.sqlite") as journal:
            grow(folder, journal, Scripted(teacher_text, latency_seconds=latency), concurrency=concurrency)
        lists.append((folder / "tasks.jsonl").read_bytes())
    assert lists[0] == lists[1]


def test_running_again_asks_nothing(tmp_path, journal):
    grow(tmp_path, journal, Scripted(teacher_text))
    before = (tmp_path / "tasks.jsonl").read_bytes()
    silent = Scripted([])
    grow(tmp_path, journal, silent)
    assert silent.requests == []
    assert (tmp_path / "tasks.jsonl").read_bytes() == before


def test_more_tasks_extend_the_same_list(tmp_path, journal):
    grow(tmp_path, journal, Scripted(teacher_text))
    before = instructions(tmp_path)
    grow(tmp_path, journal, Scripted(teacher_text), target=40)
    assert instructions(tmp_path)[:24] == before
    assert len(instructions(tmp_path)) == 40


def test_a_failure_that_may_pass_stops_it_with_the_beginning_kept(tmp_path, journal):
    def stumbling(request: Request) -> str | ProviderError:
        if request.replica < 3:
            return teacher_text(request)
        return ProviderError("http_503", "overloaded", transient=True)

    with pytest.raises(StoppedShort):
        grow(tmp_path, journal, Scripted(stumbling))
    beginning = instructions(tmp_path)
    assert beginning
    grow(tmp_path, journal, Scripted(teacher_text))
    assert instructions(tmp_path)[: len(beginning)] == beginning


def test_a_failure_for_good_is_counted_and_passed_over(tmp_path, journal):
    def refusing(request: Request) -> str | ProviderError:
        return ProviderError("http_400", "no") if request.replica == 1 else teacher_text(request)

    counts = grow(tmp_path, journal, Scripted(refusing))
    assert (counts["failed"], counts["tasks"]) == (1, 24)


def test_a_teacher_that_only_repeats_ends_it(tmp_path, journal):
    with pytest.raises(StoppedShort, match="nothing new"):
        grow(tmp_path, journal, Scripted(lambda request: "Name four kinds of clouds."))
    assert instructions(tmp_path) == ["Name four kinds of clouds."]
