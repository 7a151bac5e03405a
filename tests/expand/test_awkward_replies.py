"""Replies of strong models to expansions: other numbers, markdown, fences, remarks, thoughts."""

from __future__ import annotations

from typing import Any

import pytest

from distill.core import assets
from distill.expand import pool
from distill.expand.seeds import load_seeds
from distill.expand.strategies.alpaca import Alpaca
from distill.expand.strategies.attributes import Attributes
from distill.expand.strategies.evol_instruct import EvolInstruct
from distill.expand.strategies.magpie import Magpie
from distill.expand.strategies.self_instruct import SelfInstruct
from distill.expand.strategies.topics import Topics
from distill.types import Completion, Request, Task

SEEDS = load_seeds(assets.find("prompts/seeds/general.jsonl"))


BEES, ANTS = "Explain how honey bees find their way home.", "Compare the nests of ants with those of termites."


NESTS = f"{ANTS}\n\nUse this sketch:\n\n```\nants: soil\ntermites: mounds\n```"


def growth(part: Any, **options: Any) -> Any:
    return part(part.Options(**options), seeds=SEEDS, seed=7, target=64)


def grown(part: Any, *rounds: str, finish: str = "stop") -> list[Task]:
    """What is admitted of one proposal; each round of its requests, one or several, is answered by one text."""
    flow, sent, number = part.propose(0), None, 0
    while True:
        try:
            asked = flow.send(sent)
        except StopIteration as end:
            return part.admit(0, end.value)
        answer = Completion(key=f"k{number}", text=rounds[number], finish=finish)
        sent = answer if isinstance(asked, Request) else (answer,) * len(asked)
        number += 1


def texts(tasks: list[Task]) -> list[str]:
    return [task.instruction for task in tasks]


# --- lists of tasks


MARKED = [
    f"TASK 1: {BEES}\nTASK 2: {ANTS}",
    f"Sure! Here are your tasks:\n\nTASK 1: {BEES}\n\nTASK 2: {ANTS}\n\nLet me know if you'd like more tasks!",
    f"**TASK 1:** {BEES}\n\n**TASK 2:** {ANTS}",
    f"**TASK 1: {BEES}**\n\n**TASK 2: {ANTS}**",
    f"### TASK 1\n{BEES}\n\n---\n\n### TASK 2\n{ANTS}\n\n---",
    f"```\nTASK 1: {BEES}\nTASK 2: {ANTS}\n```",
    f"TASK 1: {BEES}\r\n\r\nTASK 2: {ANTS}\r\n",
    f"- Task 1 \u2013 {BEES}\n- Task 2 \u2013 {ANTS}",
    f"[TASK 1] {BEES}\n[TASK 2] {ANTS}",
    f"Task #7. {BEES}\nTask #8. {ANTS}",
    f"1. {BEES}\n2. {ANTS}",
    f'TASK 1: "{BEES}"\nTASK 2: \u201c{ANTS}\u201d',
    f'TASK 1: "TASK 1: {BEES}"\nTASK 2: 2. TASK 2: {ANTS}',
    f"TASK 1:\n- {BEES}\nTASK 2:\n- {ANTS}",
    f"1) TASK: {BEES}\n2) TASK: {ANTS}",
    f"<think>\nTASK 1: Something about wasps, perhaps?\n</think>\n\nTASK 1: {BEES}\nTASK 2: {ANTS}",
]


@pytest.mark.parametrize("answer", MARKED)
def test_marked_tasks_are_read_in_every_dress(answer):
    assert texts(grown(growth(Attributes, attributes={"kind": ["one"]}), answer)) == [BEES, ANTS]
    assert texts(grown(growth(Topics, topics=["bees", "ants"], kinds=["general"]), answer)) == [BEES, ANTS]


def test_a_task_keeps_the_code_and_the_paragraphs_that_belong_to_it():
    answer = f"TASK 1: {NESTS}\nTASK 2: {BEES}"
    assert texts(grown(growth(Attributes, attributes={"kind": ["one"]}), answer)) == [NESTS, BEES]


def test_a_task_keeps_a_list_and_the_quotations_in_it():
    listed, quoted = "- Which is larger?\n- Which is older?", '"Owl" and "wren": which of the two is larger?'
    answer = f"TASK 1: {listed}\nTASK 2: {quoted}"
    assert texts(grown(growth(Attributes, attributes={"kind": ["one"]}), answer)) == [listed, quoted]


def test_tasks_of_other_languages_are_read():
    chinese, german = (
        "\u89e3\u91ca \u871c\u8702 \u5982\u4f55 \u56de\u5bb6",
        "Erkl\u00e4re den Weg der Bienen nach Hause.",
    )
    answer = f"TASK 1\uff1a{chinese}\nTASK 2: {german}"
    assert texts(grown(growth(Attributes, attributes={"kind": ["one"]}), answer)) == [chinese, german]


@pytest.mark.parametrize(
    "answer", ["I'm sorry, but I can't help with that.", "", "<think>TASK 1: never said aloud", "Here you go!"]
)
def test_an_answer_without_a_task_is_counted(answer):
    for part in (growth(Attributes, attributes={"kind": ["one"]}), growth(Topics, topics=["bees"], kinds=["general"])):
        assert grown(part, answer) == []
        assert part.rejected == {"no_item": 1}


def test_of_a_truncated_list_the_last_task_is_refused():
    part = growth(Attributes, attributes={"kind": ["one"]})
    assert texts(grown(part, f"TASK 1: {BEES}\nTASK 2: Compare the nests of", finish="length")) == [BEES]
    assert part.rejected == {"cut_off": 1}


@pytest.mark.parametrize(
    "answer",
    ["1. Bees\n2. Ants", "1. 21. Bees\n2. 22. Ants", "1) **Bees** \u2013 how they fly\n2) **Ants**: nests",
     "- Bees\n- Ants",
     "* Bees\r\n* Ants\r\n",
     "Here are 20 topics:\n\n1. Bees\n2. Ants\n\nI hope this list helps!", "<think>1. Wasps</think>\n1. Bees\n2. Ants"],
)  # fmt: skip
def test_topics_are_read_in_every_dress(answer):
    part = growth(Topics, kinds=["general"], topic_requests=1, new_tasks=2)
    tasks = grown(part, answer, f"TASK 1: {BEES}\nTASK 2: {ANTS}")
    assert sorted(task.meta["topic"] for task in tasks) == ["ants", "bees"]


@pytest.mark.parametrize(
    "answer",
    [f"{BEES}\n10. {ANTS}", f"9. {BEES}\n10. {ANTS}\n\nI hope this list helps!", f"9 . {BEES}\r\n10 . {ANTS}\r\n",
     f"<think>9. Wasps again?</think>\n9. {BEES}\n10. {ANTS}"],
)  # fmt: skip
def test_a_continued_list_is_read_in_every_dress(answer):
    assert texts(grown(growth(SelfInstruct, ask="chat"), answer)) == [BEES, ANTS]


# --- blocks


def block(number: str, *, mark: str = "{}", empty: str = "<noinput>") -> str:
    fields = (f"Instruction: {BEES}", f"Input:\n{empty}", "Output:\nBy the sun.")
    return "\n".join(mark.format(number) + field for field in fields)


BLOCKS = [
    block("4. "),
    f"Certainly! I'll go on with the list.\n\n###\n{block('4. ')}\n###",
    block("4) "),
    block("**4.** "),
    block("4. ").replace("4. Instruction:", "**4. Instruction:**").replace("4. Output:", "**4. Output:**"),
    block(""),
    f"### Task 4\n{block('')}\n\n### Task 5",
    f"```\n{block('4. ')}\n```",
    block("4. ").replace("\n", "\r\n"),
    block("4. ").replace(":\n", ": "),
    block("4. ").replace(":", "\uff1a"),
    block("4. ").removeprefix("4. Instruction:"),
    f"{block('4. ')}\n\nLet me know if you want more tasks.",
    f"<think>\n{block('4. ').replace('bees', 'wasps')}\n</think>\n{block('4. ')}",
    *(
        block("4. ", empty=said)
        for said in ("<NoInput>", "N/A", "None needed", "(no input)", "No input required.", "-")
    ),
]


@pytest.mark.parametrize("answer", BLOCKS)
def test_a_block_is_read_in_every_dress(answer):
    (task,) = grown(growth(Alpaca, ask="chat"), answer)
    assert (task.instruction, task.input, task.meta["output"]) == (BEES, "", "By the sun.")


def test_an_output_may_hold_headings_code_and_lists():
    output = "### Steps\n\n1. Look:\n\n```python\n# Input: nothing\nprint('4. Output')\n```\n\n2. Done."
    (task,) = grown(growth(Alpaca), block("4. ").replace("By the sun.", output))
    assert task.meta["output"] == output


@pytest.mark.parametrize(
    "answer", ["I'm sorry, but I can't continue this list.", "Instrucci\u00f3n: Explica las abejas."]
)
def test_a_reply_that_is_no_block_is_counted(answer):
    part = growth(Alpaca, ask="chat")
    assert grown(part, answer) == []
    assert part.rejected == {"malformed": 1}


def test_a_reply_of_thoughts_alone_is_counted():
    part = growth(Alpaca, ask="chat")
    assert grown(part, f"<think>{block('4. ')}", finish="length") == []
    assert part.rejected == {"no_item": 1}


# --- evolutions


def evolved(part: EvolInstruct, text: str, *, judge: str = "Not Equal", answer: str = "By the sun.") -> list[Task]:
    flow, said = part.propose(0), {"judge": judge, "teacher": answer}
    next(flow)
    sent = Completion(key="e", text=text, finish="stop")
    while True:
        try:
            role = flow.send(sent).role
        except StopIteration as end:
            return part.admit(0, end.value)
        sent = Completion(key=role, text=said[role], finish="stop")


@pytest.mark.parametrize(
    "text",
    [BEES, f'"{BEES}"', f"\u201c{BEES}\u201d", f"Sure! Here's a harder one:\n\n{BEES}",
     f"<think>Add a limit.</think>\n{BEES}",
     f"```\n{BEES}\n```", f"{BEES}\r\n"],
)  # fmt: skip
def test_an_evolution_is_read_in_every_dress(text):
    (task,) = evolved(growth(EvolInstruct), text)
    assert (task.instruction, task.meta["output"]) == (BEES, "By the sun.")


def test_an_evolution_keeps_its_data():
    assert texts(evolved(growth(EvolInstruct), NESTS)) == [NESTS]


def test_a_refusal_is_no_evolution_and_is_not_examined():
    part, flow = growth(EvolInstruct), growth(EvolInstruct).propose(0)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(Completion(key="e", text="I'm sorry, but I can't rewrite this.", finish="stop"))
    assert part.admit(0, end.value.value) == []
    assert part.rejected == {"refusal": 1}


@pytest.mark.parametrize(
    "judge",
    ["Not Equal", "**Not Equal**", "Not equal: the second sets a limit.", "NOT EQUAL.", "They aren't equal.",
     "not-equal",
     "They are not exactly equal.", "Unequal", "<think>Equal? The second is deeper.</think>\nNot Equal",
     "Both seem equal at first.\n\nAnswer: Not Equal"],
)  # fmt: skip
def test_a_judge_says_in_many_ways_that_something_was_gained(judge):
    assert texts(evolved(growth(EvolInstruct), BEES, judge=judge)) == [BEES]


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        ("Equal", "equal"),
        ("**Equal.**", "equal"),
        ("The two are not equal in words.\n\nVerdict: Equal", "equal"),
        ("<think>Not equal?</think>Equal", "equal"),
        ("Equal or Not Equal?", "unjudged"),
        ("I'm sorry, I can't compare these.", "unjudged"),
        ("<think>Equal, since both", "unjudged"),
        ("", "unjudged"),
    ],
)
def test_a_judge_that_says_otherwise_or_nothing_eliminates(judge, reason):
    part = growth(EvolInstruct)
    assert evolved(part, BEES, judge=judge) == []
    assert part.rejected == {reason: 1}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I'm sorry, but I can't help with that.", "sorry"),
        ("<think>Bees. The sun. Hm.</think>\nSorry, I do not know.", "sorry"),
        ("<think>Bees fly home by the sun.</think>\n...", "no_words"),
    ],
)
def test_thoughts_are_no_part_of_the_answer_by_which_an_evolution_is_judged(answer, reason):
    part = growth(EvolInstruct)
    assert evolved(part, BEES, answer=answer) == []
    assert part.rejected == {reason: 1}


@pytest.mark.parametrize("answer", ["\u871c\u8702\u9760\u592a\u9633\u3002", "42", "<think>Bees fly home by"])
def test_an_answer_in_another_script_or_cut_in_its_thoughts_eliminates_nothing(answer):
    assert texts(evolved(growth(EvolInstruct), BEES, answer=answer)) == [BEES]


def test_a_judge_that_thinks_is_given_room():
    options = {"judge_sampling": {"max_tokens": 2000, "reasoning_effort": "low"}}
    flow = growth(EvolInstruct, **options).propose(0)
    next(flow)
    judge = flow.send(Completion(key="e", text=BEES, finish="stop"))
    assert (judge.sampling.max_tokens, judge.sampling.temperature) == (2000, 0.0)


# --- what a user would write


@pytest.mark.parametrize(("text", "reason"), [("", "empty"), ("Translate this:", "colon_last"), ("Hi!", "too_short")])
def test_what_a_user_would_not_send_is_refused(text, reason):
    part = growth(Magpie)
    assert grown(part, text) == []
    assert part.rejected == {reason: 1}


@pytest.mark.parametrize(
    "thoughts",
    [
        "[THINK]1. not a task[/THINK]",
        "\u25c1think\u25b7plan\u25c1/think\u25b7\n",
        "<thought>\n1. no task\n</thought>\n",
    ],
)
def test_thoughts_of_any_family_bring_no_task(thoughts):
    answer = Completion(key="k", text=f"{thoughts}1. Name a river.\n2. Name a hill.", finish="stop")
    assert pool.numbered_items(pool.reply_text(answer)) == ["Name a river.", "Name a hill."]
