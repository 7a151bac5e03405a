"""Inputs and outputs for bare instructions: Self-Instruct's steps two to four, rule by rule."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.collect.strategies.instances import GeneratedInstance, Instances, by_inputs, by_labels, plain, valid
from distill.types import Failure, Request, Task
from tests.support.flowing import cut, lost, play, well_formed

TASK = Task("t1", "Make this  request more polite.", meta={"lineage": ["s1"]})
EXAMPLES = "Example 1\nGo away.\nOutput: Please leave.\nExample 2\nSit.\nOutput: Please sit.\n"
LABELS = " angry\nYou lost it!\nClass label: calm\nIt came today.\n"


def made(second, *, first="No", task: Task = TASK, seed: int = 0, **options):
    """The test for labels is answered by `first`, the request for instances by `second`."""

    def answer(request: Request):
        return first if request.sampling.max_tokens == 3 else second

    given = {"plain_inputs": 0, **options}
    return play(Instances(Instances.Options(**given)), task, answer, seed=seed)


def pairs(sessions) -> list[tuple[str, str]]:
    return [(session.messages[-2].content, session.messages[-1].content) for session in sessions]


def test_inputs_come_first_where_the_answer_is_no_label():
    sessions, asked = made(EXAMPLES)
    assert pairs(sessions) == [
        ("Make this  request more polite.\n\nGo away.", "Please leave."),
        ("Make this  request more polite.\n\nSit.", "Please sit."),
    ]
    assert all(well_formed(session) for session in sessions)
    assert sessions[0].meta == {
        "task": "t1",
        "strategy": "instances",
        "keys": ["k1", "k2"],
        "lineage": ["s1"],
        "is_classification": False,
        "truncated": False,
        "labels": [],
    }
    assert asked[0].prompt.endswith("Task: Make this request more polite.\nPicked from known labels?")
    assert asked[1].prompt.endswith("Task: Make this request more polite.\n")


def test_labels_come_first_where_the_answer_is_one():
    sessions, asked = made(LABELS, first=" Yes")
    assert [turn[1] for turn in pairs(sessions)] == ["angry", "calm"]
    assert sessions[0].messages[0].content.endswith("\n\nYou lost it!")
    assert asked[1].prompt.endswith("\nClass label:")
    assert sessions[0].meta["is_classification"] is True


@pytest.mark.parametrize(("first", "most"), [("Yes", 300), ("No", 350)])
def test_requests_are_drawn_as_in_the_original(first, most):
    _, asked = made(LABELS, first=first)
    assert (asked[0].sampling.temperature, asked[0].sampling.stop) == (0.0, ("\n", "Task"))
    drawn = asked[1].sampling
    assert (drawn.temperature, drawn.presence_penalty, drawn.max_tokens) == (0.0, 1.5, most)
    assert drawn.stop == ("\nExample 6", "\nTask:")


def test_a_task_that_knows_its_kind_is_not_tested():
    task = Task("t1", "Sort it.", meta={"is_classification": True})
    sessions, asked = made(LABELS, task=task)
    assert (len(asked), sessions[0].meta["keys"]) == (1, ["k1"])


def test_an_answer_that_is_neither_yes_nor_no_is_its_own_class():
    sessions, _ = made(EXAMPLES, first="Perhaps")
    assert {session.meta["is_classification"] for session in sessions} == {"unparsed"}


@pytest.mark.parametrize("transient", [True, False])
def test_a_test_that_fails_is_a_failure_and_not_a_no(transient):
    failure, asked = made(EXAMPLES, first=lost(transient=transient))
    assert (failure, len(asked)) == (lost(transient=transient), 1)


def test_a_tasks_own_input_is_its_first_instance():
    task = Task("t1", "Make it polite.", "Go away.")
    sessions, asked = made(" Please leave.\nExample 2\nSit.\nOutput: Please sit.", task=task)
    assert asked[0].prompt.endswith("Example 1\nGo away.\nOutput:")
    assert [turn[1] for turn in pairs(sessions)] == ["Please leave.", "Please sit."]


def test_a_task_without_an_input_has_one_output():
    sessions, _ = made("Output: - Wash it.\n- Dry it.\n\nTask: Another one.\nOutput: Never.")
    assert pairs(sessions) == [("Make this  request more polite.", "- Wash it.\n- Dry it.")]


def test_chat_asks_for_the_same_as_a_message():
    _, asked = made(EXAMPLES, ask="chat")
    assert all(request.prompt is None and len(request.messages) == 1 for request in asked)
    assert "Task: Make this request more polite." in asked[1].messages[0].content


# --- reading


def test_inputs_may_be_named_and_a_second_one_ends_the_output():
    text = "Example 1\nInput: Go.\nOutput: Please go.\nInput: Stay.\nOutput: Please stay."
    assert by_inputs(text) == [GeneratedInstance("Go.", "Please go.")]


def test_words_of_the_form_inside_sentences_part_nothing():
    text = "Example 1\nFor Example 2 you need luck.\nOutput: The word Example and Class label: stay."
    assert by_inputs(text) == [
        GeneratedInstance("For Example 2 you need luck.", "The word Example and Class label: stay.")
    ]
    assert by_labels(" yes\nIs Class label: a term?") == [GeneratedInstance("Is Class label: a term?", "yes")]


def test_one_line_may_hold_input_and_output():
    assert by_inputs("Example 1: Input: Go. Output: Please go.") == [GeneratedInstance("Go.", "Please go.")]


def test_a_label_without_an_input_stands_alone():
    assert by_labels(" yes\nClass label: no") == [GeneratedInstance("", "yes"), GeneratedInstance("", "no")]


@given(
    st.lists(st.sampled_from(["Example 1\n", "Output:", "Input: ", "Class label:", "a", "\n", ":", " "]), max_size=25)
)
def test_whatever_is_written_what_is_valid_has_an_output(pieces):
    text = "".join(pieces)
    for found in (by_inputs(text), by_labels(text)):
        kept, rejected = valid(found)
        assert all(each.output and each.output != each.input for each in kept)
        assert len(kept) + rejected.total() == len(found)


# --- rules


@pytest.mark.parametrize(
    ("instance", "reason"),
    [
        (GeneratedInstance("a", ""), "empty_output"),
        (GeneratedInstance("a", "a"), "output_is_input"),
        (GeneratedInstance("a:", "b"), "ends_with_colon"),
        (GeneratedInstance("a", "b:"), "ends_with_colon"),
    ],
)
def test_each_rule_gives_its_reason(instance, reason):
    assert valid([instance, GeneratedInstance("x", "y")]) == ([GeneratedInstance("x", "y")], {reason: 1})


def test_one_input_with_two_outputs_takes_all_with_it():
    kept, rejected = valid([GeneratedInstance("a", "b"), GeneratedInstance("x", "y"), GeneratedInstance("a", "c")])
    assert (kept, rejected["contradiction"]) == ([], 3)


def test_without_an_input_two_outputs_are_no_contradiction():
    assert len(valid([GeneratedInstance("", "b"), GeneratedInstance("", "c")])[0]) == 2


def test_equal_instances_count_once():
    kept, rejected = valid([GeneratedInstance("a", "b"), GeneratedInstance("a", "b")])
    assert (kept, rejected["duplicate"]) == ([GeneratedInstance("a", "b")], 1)


def test_of_a_cut_answer_the_last_instance_is_dropped():
    assert [turn[1] for turn in pairs(made(cut(EXAMPLES))[0])] == ["Please leave."]
    failure, _ = made(cut("Output: Once upon"))
    assert (failure.reason, failure.key) == ("no_instance", "cut")


def test_at_most_five_are_drawn_in_their_order():
    many = "".join(f"Example {n}\nin {n}\nOutput: out {n}\n" for n in range(1, 10))
    drawn = {seed: [turn[1] for turn in pairs(made(many, seed=seed)[0])] for seed in range(20)}
    assert {len(outputs) for outputs in drawn.values()} == {5}
    assert all(outputs == sorted(outputs) for outputs in drawn.values())
    assert len({tuple(outputs) for outputs in drawn.values()}) > 5


def test_nothing_usable_is_a_failure_that_says_what_was_found():
    failure, _ = made("Example 1\nGo away.\n")
    assert isinstance(failure, Failure)
    assert failure.detail == "1 instances, none usable: {'empty_output': 1} (finish: stop)"


@pytest.mark.parametrize(
    ("given_input", "written"),
    [
        ("Text: Go away.\n\n\nNow.", "Go away.\nNow."),
        ("Name: Jo\nAge: 8", "Name: Jo\nAge: 8"),
        ("Go away.", "Go away."),
        ("He said\nnote: no", "He said\nnote: no"),
    ],
)
def test_a_lone_fields_name_is_taken_off(given_input, written):
    assert plain(given_input) == written


def test_half_of_the_inputs_lose_their_names():
    text = "".join(f"Example {n}\nText: in {n}\nOutput: out {n}\n" for n in range(1, 6))
    asked = [turn[0] for seed in range(40) for turn in pairs(made(text, seed=seed, plain_inputs=0.5)[0])]
    assert 0.4 < sum("Text:" not in turn for turn in asked) / len(asked) < 0.6


def test_varied_forms_are_drawn_for_each():
    strategy, forms = Instances(Instances.Options(input="varied")), set()
    for seed in range(40):
        flow = strategy.flow(Task("t", "Do.", meta={"is_classification": False}), Random(seed))
        next(flow)
        with pytest.raises(StopIteration) as end:
            flow.send(cut(EXAMPLES + "Example 3\n"))
        forms |= {session.messages[0].content.replace("Sit.", "Go away.") for session in end.value.value}
    assert len(forms) == 7
