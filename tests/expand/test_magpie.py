"""Magpie: the template up to the user's turn, and what is taken of what comes."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from distill.expand.strategies.magpie import TEMPLATES, Magpie
from distill.types import Completion, Failure, Request, Task


def growth(**options) -> Magpie:
    return Magpie(Magpie.Options(**options), seed=7, target=64)


def asked(part: Magpie, k: int = 0) -> Request:
    return next(part.propose(k))


def answered(part: Magpie, text: str, finish: str = "stop", k: int = 0) -> list[Task]:
    flow = part.propose(k)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(Completion(key="key", text=text, finish=finish))
    return part.admit(k, end.value.value)


def test_the_prompt_ends_where_the_user_speaks():
    assert asked(growth()).prompt == "<|im_start|>user\n"
    assert asked(growth(template="vicuna")).prompt == "USER: "


def test_a_system_message_stands_before():
    prompt = asked(growth(template="llama3", system="You know law.")).prompt
    assert prompt == (
        "<|start_header_id|>system<|end_header_id|>\n\nYou know law.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_begins_one_turn_of_the_user(template):
    plain, steered = (asked(growth(template=template, system=system)).prompt for system in ((), "You know law."))
    assert plain == TEMPLATES[template].user
    assert steered.count(plain.strip()) == 1
    assert steered.count("You know law.") == 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_instruction_ends_at_a_line_break_or_the_templates_tokens(template):
    stop = asked(growth(template=template)).sampling.stop
    assert stop == ("\n", *TEMPLATES[template].stop)
    assert len(stop) <= 4
    assert asked(growth(template=template, one_line=False)).sampling.stop == TEMPLATES[template].stop


def test_of_several_system_messages_each_request_has_one():
    part = growth(system=["You know law.", "You know cooking."])
    prompts = {asked(part, k).prompt for k in range(20)}
    assert len(prompts) == 2
    assert answered(part, "What may a tenant refuse?")[0].meta["system"] in ("You know law.", "You know cooking.")


def test_requests_differ_by_a_seed_of_their_own():
    part = growth()
    seeds = [asked(part, k).sampling.seed for k in range(20)]
    assert len(set(seeds)) == 20
    assert seeds == [asked(growth(), k).sampling.seed for k in range(20)]
    assert asked(growth(send_seed=False)).sampling.seed is None


def test_its_sampling_is_that_of_the_original():
    assert (asked(growth()).sampling.temperature, asked(growth()).sampling.top_p) == (1.0, 1.0)


def test_text_of_ones_own_stands_before_the_user():
    request = asked(growth(template="own", before_user="Q: ", sampling={"stop": ["\nA:"]}, one_line=False))
    assert (request.prompt, request.sampling.stop) == ("Q: ", ("\nA:",))


@pytest.mark.parametrize(
    "options",
    [{"template": "own"}, {"before_user": "Q: "}, {"template": "own", "before_user": "Q: ", "system": "You know law."}],
)
def test_text_of_ones_own_and_its_template_belong_together(options):
    with pytest.raises(ValidationError, match="before_user"):
        Magpie.Options(**options)


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("Answer the following question:", "stop", "colon_last"),
        ("Please tell me how to", "length", "cut_off"),
        ("Hello!", "stop", "too_short"),
        (" ", "stop", "empty"),
        ("Summarise this paragraph for me.", "stop", "needs_input"),
    ],
)
def test_an_instruction_is_refused_with_its_reason(text, finish, reason):
    part = growth()
    assert answered(part, text, finish) == []
    assert part.rejected == {reason: 1}


def test_an_instruction_about_a_text_in_further_lines_is_taken():
    assert answered(growth(), "Name the cities in the following sentences.\na) Rome fell.\nb) Paris rose.")


def test_an_instruction_like_one_before_is_refused():
    part = growth()
    assert answered(part, "How do I boil an egg?", k=0)
    assert answered(part, "How do I boil one egg?", k=1) == []
    assert part.rejected == {"too_similar": 1}


def test_a_failure_brings_no_task():
    flow = growth().propose(0)
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send(Failure(key="k", reason="http_400", detail="no", transient=False))
    assert end.value.value == []
