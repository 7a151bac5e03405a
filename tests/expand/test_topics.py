"""Topics: lists of topics first, then tasks of one kind a request, each about its topic."""

from __future__ import annotations

import time
from typing import get_args

import pytest

from distill.core import assets
from distill.expand.pool import is_statement, marked_items, needs_input, numbered_items
from distill.expand.strategies.alpaca import blocks
from distill.expand.strategies.topics import Kind, Topics, listed_topics
from distill.types import Completion, Failure, Task

KINDS = get_args(Kind)
OWN = ("beekeeping", "tides", "old clocks")


def growth(**options) -> Topics:
    return Topics(Topics.Options(**options), seed=7, target=64)


def said(text: str, finish: str = "stop") -> Completion:
    return Completion(key="key", text=text, finish=finish)


def answered(part: Topics, text: str, k: int = 0, finish: str = "stop") -> list[Task]:
    flow = part.propose(k)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(said(text, finish))
    return end.value.value


def test_topics_are_asked_for_first_and_all_at_once():
    requests = next(growth(topic_requests=4, topics_each=15).propose(0))
    texts = [request.messages[0].content for request in requests]
    assert len(set(texts)) == 4
    assert all("List 15 topics" in text for text in texts)


def test_every_request_asks_for_the_same_topics():
    part = growth(topic_requests=4)
    assert next(part.propose(0)) == next(part.propose(9))


def test_topics_are_taken_once_and_drawn_from_for_each_request():
    part = growth(topic_requests=2, new_tasks=2)
    flow = part.propose(0)
    next(flow)
    request = flow.send((said("1. Tides\n2. Old clocks"), said("1. tides\n2. Beekeeping: bees and honey")))
    text = request.messages[0].content
    assert sum(topic in text for topic in OWN) == 2
    assert part._topics == ["tides", "old clocks", "beekeeping"]
    assert next(part.propose(1)).messages[0].content != text


def test_a_list_that_failed_is_passed_over_and_without_any_there_is_no_task():
    failure = Failure(key="k", reason="http_400", detail="no", transient=False)
    flow = growth(topic_requests=2).propose(0)
    next(flow)
    assert "tides" in flow.send((failure, said("1. Tides"))).messages[0].content
    flow = growth(topic_requests=2).propose(0)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send((failure, failure))
    assert end.value.value == []


def test_kinds_are_taken_in_turn_each_with_a_prompt_of_its_own():
    part = growth(topics=OWN)
    texts = [next(part.propose(k)).messages[0].content.split("\n")[0] for k in range(2 * len(KINDS))]
    assert len(set(texts)) == len(KINDS) >= 9
    assert texts[: len(KINDS)] == texts[len(KINDS) :]


def test_there_is_a_prompt_for_every_kind_and_no_other():
    files = {path.stem.removeprefix("topics_") for path in assets.find("prompts/strategies").glob("topics_*.txt")}
    assert files == {*KINDS, "list"}


def test_a_task_says_its_kind_and_the_topic_of_its_number():
    part = growth(topics=OWN, kinds=["trivia"])
    tasks = answered(part, "Sure!\nTASK 1: Who made the hive?\nTASK 3: Why is the sea salty?\nTASK 7: What is it now?")
    lines = next(part.propose(0)).messages[0].content
    drawn = [topic for _, topic in sorted((lines.index(topic), topic) for topic in OWN)]
    assert [task.meta.get("topic") for task in tasks] == [drawn[0], drawn[2], None]
    assert {task.meta["kind"] for task in tasks} == {"trivia"}
    assert tasks[0].meta["lineage"] == [drawn[0]]


def test_topics_come_from_a_file(tmp_path):
    (tmp_path / "topics.txt").write_text("tides\n\n old clocks \n")
    assert growth(topics_file=str(tmp_path / "topics.txt"), topics=["bees"])._topics == ["bees", "tides", "old clocks"]


def test_only_short_lines_are_topics():
    text = "Here:\n1. **Tides**\n2) Old clocks - how they work\n3. A line with far too many words in it is none\n"
    assert listed_topics(text) == ["tides", "old clocks"]


def test_of_a_cut_answer_only_the_last_task_is_refused():
    part = growth(topics=OWN)
    tasks = part.admit(0, answered(part, "TASK 1: Name four kinds of clouds.\nTASK 2: Explain wh", finish="length"))
    assert [task.instruction for task in tasks] == ["Name four kinds of clouds."]
    assert part.rejected == {"cut_off": 1}


# --- how marked items are read


def test_items_keep_their_lines_and_numbered_lists_within_them():
    item = "Read this.\n\n1. Tides rise.\n2. Tides fall.\n\nWhy?"
    assert marked_items(f"Gladly:\n\n**TASK 1:** {item}\n\n---\n\nTASK 2: Name a bird.") == [
        (1, item),
        (2, "Name a bird."),
    ]


def test_without_marks_numbers_count_and_an_item_ends_at_a_blank_line():
    text = "1. Name a bird.\n2) Name a fish.\n\nI hope this helps!"
    assert marked_items(text) == [
        (1, "Name a bird."),
        (2, "Name a fish."),
    ]


def test_a_mark_without_its_number_is_no_part_of_an_item():
    assert marked_items("1. TASK: Name a bird.") == [(1, "Name a bird.")]


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("**TASK 1: Name a bird.**", "Name a bird."),
        ("**TASK 1:** Name a bird.", "Name a bird."),
        ("### Task 1 - Name a bird.", "Name a bird."),
        ("TASK 1: **Name** a **bird.**", "**Name** a **bird.**"),
        ('TASK 1: "Bird" means what?', '"Bird" means what?'),
        ("1. (a) Name a bird.", "(a) Name a bird."),
        ("1. Walk.\n3.5 km are enough.", "Walk.\n3.5 km are enough."),
    ],
)
def test_only_what_belongs_to_its_mark_is_taken_from_an_item(text, item):
    assert marked_items(text) == [(1, item)]


@pytest.mark.parametrize("text", ["", "I cannot.", "TASK 1:\nTASK 2: "])
def test_what_has_no_item_brings_none(text):
    assert marked_items(text) == []


@pytest.mark.parametrize("space", [" ", "\n", " \n", "#", "1. ", "\u201c", '"', "If "])
def test_a_flood_of_anything_is_read_in_no_time(space):
    text = f"TASK 1: Name a bird.{space * 50_000}TASK 2: Name a fish."
    started = time.process_time()
    for read in (marked_items, numbered_items, blocks, needs_input, is_statement):
        read(text)
        read(space * 100_000)
        read(f"The following {space * 100_000}")
    assert time.process_time() - started < 2
