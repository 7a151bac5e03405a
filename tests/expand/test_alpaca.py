"""Alpaca's expansion: what it shows, how it reads blocks, what it refuses."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from distill.core import assets
from distill.expand.seeds import load_seeds
from distill.expand.strategies.alpaca import Alpaca, blocks, read_block
from distill.types import Completion, Failure, Task

SEEDS = load_seeds(assets.find("prompts/seeds/general.jsonl"))


def growth(**options) -> Alpaca:
    return Alpaca(Alpaca.Options(**options), seeds=SEEDS, seed=7, target=64)


def asked(part: Alpaca, k: int = 0):
    return next(part.propose(k))


def answered(part: Alpaca, text: str, finish: str = "stop") -> list[Task]:
    flow = part.propose(0)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(Completion(key="key", text=text, finish=finish))
    return end.value.value


def block(number: int, instruction: str, given: str = "<noinput>", output: str = "Done.") -> str:
    return f"{number}. Instruction: {instruction}\n{number}. Input:\n{given}\n{number}. Output:\n{output}\n###\n"


CLOUDS, BREAD = "Name four kinds of clouds.", "Explain why bread rises."


def test_three_seeds_are_shown_in_blocks_and_the_list_goes_on_at_four():
    prompt = asked(growth()).prompt
    shown = re.findall(r"^(\d+)\. Instruction: (.+)$", prompt, re.MULTILINE)
    assert [number for number, _ in shown] == ["1", "2", "3"]
    assert {text for _, text in shown} <= {" ".join(seed.instruction.split()).rstrip(":") for seed in SEEDS}
    assert prompt.endswith("\n4. Instruction:")
    assert "20 different tasks" in prompt


def test_a_seed_without_input_is_shown_with_the_marker():
    prompts = [asked(growth(), k).prompt for k in range(20)]
    inputs = [given for prompt in prompts for given in re.findall(r"^\d\. Input:\n(.+)$", prompt, re.MULTILINE)]
    assert len(inputs) == 60
    assert 10 < inputs.count("<noinput>") < 50


def test_the_teachers_own_tasks_are_never_shown():
    part = growth()
    part.admit(0, answered(part, block(4, CLOUDS)))
    assert all(CLOUDS not in asked(part, k).prompt for k in range(40))


def test_only_the_next_number_with_its_field_ends_a_batch():
    assert asked(growth()).sampling.stop == ("\n21. Instruction:",)
    assert asked(growth(batch=8)).sampling.stop == ("\n9. Instruction:",)


def test_its_sampling_is_that_of_the_original():
    sampling = asked(growth()).sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, 3072)


def test_a_block_brings_a_task_with_its_input_and_its_output():
    part = growth()
    text = f" {CLOUDS}\n4. Input:\n<noinput>\n4. Output:\nCirrus.\n###\n" + block(5, "Correct it.", "I goes.", "I go.")
    tasks = part.admit(0, answered(part, text.replace("Correct it.", "Correct the given sentence.")))
    assert [(task.instruction, task.input, task.meta["output"]) for task in tasks] == [
        (CLOUDS, "", "Cirrus."),
        ("Correct the given sentence.", "I goes.", "I go."),
    ]
    assert len(tasks[0].meta["lineage"]) == 3


def test_a_heading_in_an_output_ends_nothing():
    output = "### Clouds\n1. Cirrus\n2. Stratus\nOutput: none"
    (task,) = answered(growth(), block(4, CLOUDS, output=output))
    assert task.meta["output"] == output


def test_a_year_or_a_price_ends_nothing():
    (task,) = answered(growth(), block(4, CLOUDS, output="It was in 2020. It cost $20."))
    assert task.meta["output"] == "It was in 2020. It cost $20."


@pytest.mark.parametrize("given", ["<noinput>", "<NoInput>", "No input", "N/A", "None.", ""])
def test_every_way_to_say_that_there_is_no_input_is_one(given):
    assert read_block(f"{CLOUDS}\nInput: {given}\nOutput: Cirrus.") == (CLOUDS, "", "Cirrus.")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{CLOUDS}\n4. Output:\nCirrus.", "malformed"),
        (f"{CLOUDS}\n4. Input:\na\n4. Input:\nb\n4. Output:\nCirrus.", "malformed"),
        (block(4, CLOUDS, output=""), "empty_output"),
        (block(4, CLOUDS, "cirrus", "cirrus"), "output_is_input"),
        (block(4, "Describe the diagram of a motor."), "forbidden_word"),
        (block(4, "Summarise this paragraph in one sentence."), "needs_input"),
        (block(4, SEEDS[0].instruction), "too_similar"),
    ],
)
def test_a_block_is_refused_with_its_reason(text, reason):
    part = growth()
    assert part.admit(0, answered(part, text)) == []
    assert part.rejected == {reason: 1}


def test_an_instruction_about_a_text_is_taken_with_its_text():
    part = growth()
    assert part.admit(0, answered(part, block(4, "Summarise this paragraph in one sentence.", "A cat sat.")))


def test_of_a_cut_answer_only_the_last_block_is_refused():
    part = growth()
    tasks = part.admit(0, answered(part, block(4, CLOUDS) + f"5. Instruction: {BREAD}\n5. Input:\n<noi", "length"))
    assert [task.instruction for task in tasks] == [CLOUDS]
    assert part.rejected == {"cut_off": 1}


def test_blocks_are_told_apart_whether_the_first_is_numbered_or_not():
    expected = [
        f"{CLOUDS}\n4. Input:\n<noinput>\n4. Output:\nDone.",
        f"{BREAD}\n5. Input:\n<noinput>\n5. Output:\nDone.",
    ]
    text = block(4, CLOUDS) + block(5, BREAD)
    assert blocks(text) == expected
    assert blocks(text.removeprefix("4. Instruction:")) == expected
    assert blocks(text.replace("5. Instruction:", "**5. Instruction:**"))[0] == expected[0]


def test_a_failure_brings_no_task():
    flow = growth().propose(0)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(Failure(key="k", reason="http_400", detail="no", transient=False))
    assert end.value.value == []


def test_a_batch_that_leaves_no_room_is_an_error():
    with pytest.raises(ValidationError, match="leaves nothing to write"):
        Alpaca.Options(batch=3)


@pytest.mark.parametrize(("ask", "is_chat"), [("chat", True), ("chatml", False)])
def test_it_can_be_asked_in_other_ways(ask, is_chat):
    request = asked(growth(ask=ask))
    assert (request.prompt is None) == is_chat
    assert (request.prompt or request.messages[0].content).endswith("\n4. Instruction:")
