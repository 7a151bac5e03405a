"""Evol-Instruct: operations, rounds and lineages, and the elimination with its four criteria."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest

from distill.core import assets
from distill.expand.seeds import load_seeds, seed_text
from distill.expand.strategies.evol_instruct import (
    FORMATS,
    EvolInstruct,
    Operation,
    answer_fault,
    has_marker_words,
    verdict,
)
from distill.types import Completion, Failure, Task

SEEDS = load_seeds(assets.find("prompts/seeds/general.jsonl"))


def growth(seeds=SEEDS, **options) -> EvolInstruct:
    return EvolInstruct(EvolInstruct.Options(**options), seeds=seeds, seed=7, target=64)


def said(text: str, finish: str = "stop") -> Completion:
    return Completion(key=f"key of {text[:20]}", text=text, finish=finish)


def asked(part: EvolInstruct, k: int) -> str:
    return next(part.propose(k)).messages[0].content


def examined(
    part: EvolInstruct, k: int, evolved: str, judge="Not Equal", answer="Rivers run to the sea.", finish="stop"
):
    """The candidates of a proposal whose requests are answered so."""
    flow, by_role = part.propose(k), {"judge": judge, "teacher": answer}
    next(flow)
    sent = said(evolved, finish)
    while True:
        try:
            request = flow.send(sent)
        except StopIteration as end:
            return end.value
        text = by_role[request.role]
        sent = said(text) if isinstance(text, str) else text


def evolve(part: EvolInstruct, k: int, text: str, **answers) -> list[Task]:
    return part.admit(k, examined(part, k, text, **answers))


def fresh(number: int) -> str:
    return f"Explain matter {number} of alpha{number} beta{number} gamma{number} to a child."


@pytest.mark.slow
def test_every_operation_is_drawn_about_equally_often():
    counts = Counter(asked(growth(), k).split("\n\n")[1][:45] for k in range(300))
    assert len(counts) == len(get_args(Operation)) == 6
    assert min(counts.values()) > 30


def test_operations_can_be_chosen():
    part = growth(operations=["breadth"])
    assert all("rarer" in asked(part, k) for k in range(5))


def test_data_are_added_in_a_format_drawn_for_the_request():
    part = growth(operations=["complicate_input"])
    found = {next(each for each in FORMATS if f"format: {each}." in asked(part, k)) for k in range(60)}
    assert found == set(FORMATS)


def test_a_seed_evolves_together_with_its_input():
    seed = next(seed for seed in SEEDS if seed.instances[0].input)
    text = seed_text(seed)
    assert text in asked(growth([seed], window=1), 0)
    assert seed.instances[0].input.strip() in text


def test_an_evolution_is_what_evolves_in_the_next_round():
    part = growth(window=3, rounds=3)
    first = evolve(part, 1, fresh(1))
    assert fresh(1) in asked(part, 4)
    second = evolve(part, 4, fresh(4))
    assert fresh(4) in asked(part, 7)
    assert (second[0].meta["parent"], second[0].meta["round"]) == (first[0].id, 2)
    assert second[0].meta["lineage"] == [first[0].meta["parent"], first[0].id]
    assert second[0].meta["operation"] in get_args(Operation)


def test_an_eliminated_evolution_leaves_its_parent_for_the_next_round():
    part = growth(window=2, rounds=3)
    evolve(part, 0, fresh(0))
    assert evolve(part, 2, fresh(2), judge="Equal") == []
    assert fresh(0) in asked(part, 4)
    assert part.rejected == {"equal": 1}


def test_after_the_last_round_other_seeds_begin():
    part = growth(window=2, rounds=2)
    for k in range(4):
        evolve(part, k, fresh(k))
    texts = {seed_text(seed) for seed in SEEDS}
    roots = [next(text for text in texts if f":\n{text}\n" in asked(part, k)) for k in (0, 1, 4, 5)]
    assert len(set(roots)) == 4


def test_each_pass_takes_every_seed_once_in_another_order():
    part = growth(SEEDS[:10], window=10, rounds=1)
    passes = [[part._root(place).id for place in range(start, start + 10)] for start in (0, 10, 20)]
    assert [sorted(each) for each in passes] == [sorted(seed.id for seed in SEEDS[:10])] * 3
    assert len({tuple(each) for each in passes}) == 3


def test_more_instructions_side_by_side_than_seeds_are_no_error():
    part = growth(SEEDS[:2], window=5, rounds=2)
    assert len([evolve(part, k, fresh(k)) for k in range(30)]) == 30


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"judge": "Equal"}, "equal"),
        ({"judge": "Perhaps."}, "unjudged"),
        ({"answer": "Sorry, that is beyond me."}, "sorry"),
        ({"answer": "... and so on!"}, "no_words"),
        ({"answer": ""}, "no_words"),
        ({"finish": "length"}, "cut_off"),
        ({"answer": Failure(key="k", reason="http_400", detail="no", transient=False)}, "unanswered"),
        ({"judge": Failure(key="k", reason="http_400", detail="no", transient=False)}, "unjudged"),
    ],
)
def test_an_evolution_is_eliminated_with_its_reason(answers, reason):
    part = growth()
    assert evolve(part, 0, fresh(0), **answers) == []
    assert part.rejected == {reason: 1}


def test_an_evolution_that_asks_nothing_is_refused():
    part = growth()
    assert evolve(part, 0, "The instrument belongs to the family of clarinets.") == []
    assert part.rejected == {"statement": 1}
    assert evolve(growth(reject=[]), 0, "The instrument belongs to the family of clarinets.")


@pytest.mark.parametrize("text", ["#Rewritten Instruction#: Name a bird now.", "The given prompt asks for birds."])
def test_an_evolution_that_copies_the_frame_is_eliminated_unasked(text):
    part = growth()
    flow = part.propose(0)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(said(text))
    assert part.admit(0, end.value.value) == []
    assert part.rejected == {"marker_words": 1}


def test_a_copy_of_its_parent_is_refused():
    part = growth(window=1)
    parent = part._root(0).instruction
    assert evolve(part, 0, parent) == []
    assert part.rejected == {"too_similar": 1}


def test_an_answer_is_paid_for_only_where_something_was_gained():
    flow = growth().propose(0)
    next(flow)
    judge = flow.send(said(fresh(0)))
    assert (judge.role, judge.sampling.temperature) == ("judge", 0.0)
    assert fresh(0) in judge.messages[0].content
    answer = flow.send(said("Not Equal"))
    assert (answer.role, answer.messages[0].content) == ("teacher", fresh(0))
    flow = growth().propose(0)
    next(flow)
    flow.send(said(fresh(0)))
    with pytest.raises(StopIteration):
        flow.send(said("Equal"))


def test_the_answer_stands_in_the_tasks_meta():
    (task,) = evolve(growth(), 0, fresh(0), answer="Rain falls.  ")
    assert task.meta["output"] == "Rain falls."


@pytest.mark.parametrize(
    ("criteria", "roles"),
    [(["equal"], ["judge"]), (["sorry"], ["teacher"]), (["no_words"], ["teacher"]), (["marker_words"], [])],
)
def test_what_no_criterion_needs_is_not_asked(criteria, roles):
    flow, found = growth(eliminate=criteria).propose(0), []
    next(flow)
    sent = said(fresh(0))
    while True:
        try:
            found.append(flow.send(sent).role)
        except StopIteration:
            break
        sent = said("Not Equal")
    assert found == roles


@pytest.mark.parametrize("operation", get_args(Operation))
def test_an_evolution_that_says_our_instructions_is_eliminated(operation):
    part = growth(operations=[operation])
    told = asked(part, 0).split("\n\n")[2].split(". ")[0]
    assert len(told.split()) > 5
    assert evolve(part, 0, f"{told}.") == []
    assert part.rejected == {"marker_words": 1}


def test_criteria_can_be_switched_off():
    part = growth(eliminate=["equal"])
    assert evolve(part, 0, "Say what the given prompt of birds asks.")
    part = growth(eliminate=["sorry"])
    assert evolve(part, 0, fresh(0), answer="...")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Equal", "equal"),
        ("Not Equal.", None),
        ("**not equal**", None),
        ("They are unequal.", None),
        ("Yes", "unjudged"),
    ],
)
def test_a_verdict_is_read(text, expected):
    assert verdict(text) == expected


def test_sorry_counts_only_in_a_short_answer():
    assert answer_fault("I am sorry. " + "word " * 76) == "sorry"
    assert answer_fault("I am sorry. " + "word " * 77) is None


def test_words_of_the_frame_are_found_in_any_dress():
    assert has_marker_words("## REWRITTEN\n instruction ##")
    assert not has_marker_words("Rewrite the instruction for a washing machine.")


def test_a_failure_brings_no_task():
    flow = growth().propose(0)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(Failure(key="k", reason="http_400", detail="no", transient=False))
    assert end.value.value == []
