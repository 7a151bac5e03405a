"""Tasks off the seeds' topic: how they are told from others, reported and refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distill.engine.journal.store import Journal
from distill.engine.providers.scripted import Scripted
from distill.expand.seeds import Seed
from distill.expand.stage import expand
from distill.expand.strategies.self_instruct import SelfInstruct
from distill.expand.topic import OFF_TOPIC, Topic
from distill.types import Request
from tests.support.engine.engines import engine

SEEDS = [
    Seed(text, f"seed-{number}")
    for number, text in enumerate(
        [
            "My rear brake squeals when it rains. What can I do about it?",
            "Write a polite reply to a customer whose repair is two days late.",
            "Which tyre width suits a commuter who rides on cobblestones?",
            "Explain how to adjust a rear derailleur that skips under load.",
            "How often should a chain be replaced on an e-bike?",
            "Describe how to patch an inner tube step by step.",
            "A customer wants to return a helmet after one ride. What do I say?",
            "Compare disc brakes and rim brakes for a touring bicycle.",
        ]
    )
]
NEAR = [
    "Which lubricant is best for a chain in winter?",
    "Explain why disc brakes make noise after rain.",
    "Tell a customer that the bicycle is ready.",
]
FAR = [
    "What is the capital city of Australia called?",
    "Give me an idea for a salad without tomatoes.",
    "Suggest names for our new black kitten.",
]


@pytest.mark.parametrize(("text", "is_near"), [(text, text in NEAR) for text in (*NEAR, *FAR)])
def test_a_task_is_as_near_to_the_topic_as_to_the_nearest_seed(text: str, is_near: bool) -> None:
    assert (Topic(SEEDS).nearest(text).similarity >= OFF_TOPIC) == is_near


def test_words_that_any_request_has_make_no_topic() -> None:
    topic = Topic(SEEDS)
    itself = topic.nearest(SEEDS[4].instruction)
    assert (itself.id, itself.similarity) == ("seed-4", 1.0)
    assert topic.nearest("Zzz qqq.").similarity == 0.0
    assert topic.far([*NEAR, *FAR])[0] == min(FAR, key=lambda text: topic.nearest(text).similarity)


def answer(request: Request) -> str:
    """Six items, every second one about bicycles, all different."""
    number = request.replica
    near, far = NEAR[number % 3].split(" ", 1), FAR[number % 3].split(" ", 1)
    return "\n".join(
        [f"{near[0]} word{number}a word{number}b {near[1]}", f"9. {far[0]} other{number}a other{number}b {far[1]}"]
    )


def grown(folder: Path, journal: Journal, **options: Any) -> tuple[Mapping[str, Any], list[dict[str, Any]], int]:
    """Counts, refused rows, and the number of requests sent."""
    provider = Scripted(answer)
    values = SelfInstruct.Options(ask="chat", reject=(), window=1, rouge_l=0.99, **options)
    growth = SelfInstruct(values, seeds=SEEDS, seed=7, target=4)
    counts = expand(folder, growth=growth, target=4, engine=engine(journal, provider), seeds=SEEDS)
    refused = [json.loads(line) for line in (folder / "refused.jsonl").read_text().splitlines()]
    return counts, refused, len(provider.requests)


def test_tasks_off_the_topic_are_refused_with_their_value_and_again_when_replayed(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.sqlite") as journal:
        counts, refused, asked = grown(tmp_path, journal, on_topic=0.1)
        tasks = (tmp_path / "tasks.jsonl").read_bytes()
        assert counts["rejected"] == {"off_topic": 4}
        assert "off_topic" not in counts
        for row in refused:
            nearest = row["meta"]["nearest"]
            assert (row["meta"]["refused"], nearest["threshold"]) == ("off_topic", 0.1)
            assert 0 <= nearest["similarity"] < 0.1
        assert asked == 4
        assert grown(tmp_path, journal, on_topic=0.1) == (counts, refused, 0)
        assert (tmp_path / "tasks.jsonl").read_bytes() == tasks


def test_tasks_off_the_topic_are_reported_where_no_rule_refuses_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Journal.open(tmp_path / "journal.sqlite") as journal:
        counts, refused, _ = grown(tmp_path, journal)
    assert (counts["off_topic"], refused) == (2, [])
    told = capfd.readouterr().err
    assert "warning: expand: 2 of 4 tasks (50%) are far from every seed, such as " in told
    assert told.strip().endswith("to refuse such, --set expand.on_topic=0.1")
