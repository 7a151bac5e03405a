"""Log-likelihoods of given answers: equal to the plain computation, whatever the batch."""

from __future__ import annotations

import pytest

from distill.engine.providers import ProviderError
from distill.models import chat_template
from distill.types import Message
from tests.support.loud import load_loud

pytestmark = pytest.mark.model

PAIRS = [
    ((Message("user", "Why?"),), "Because."),
    ((Message("system", "Be brief."), Message("user", "Tell me about the sea.")), "It is wide, and blue, and salty."),
    ((Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "And the lake?")), "Small <|im_end|> 湖."),
    ((Message("user", "Name three green things that grow in a garden."),), "Peas,\n\nleeks and mint. " * 6 + "All."),
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_loud(tmp_path_factory.mktemp("tiny"))


def ask(loaded, pairs=PAIRS, template="chatml", **options):
    from distill.models.likelihood import loglikelihoods

    found = loglikelihoods(*loaded, template, pairs, **options)
    return [one if isinstance(one, ProviderError) else one.total for one in found]


def plain(loaded, messages, continuation, template) -> tuple[float, float]:
    """Unbatched, all logits: of the continuation, and of the end token after it."""
    import torch

    model, tokenizer = loaded
    example = chat_template.encode([*messages, Message("assistant", continuation)], template, tokenizer)
    start = len(chat_template.prompt_ids(messages, template, tokenizer))
    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        logs = torch.log_softmax(model(ids).logits[0].double(), -1)
    each = [float(logs[place - 1, ids[0, place]]) for place in range(start, ids.shape[1])]
    return sum(each[:-1]), each[-1]


@pytest.mark.parametrize("template", ["chatml", "alpaca", "vicuna", "own"])
def test_batched_sums_equal_plain_ones_without_the_end_token(loaded, template):
    expected = [plain(loaded, *pair, template)[0] for pair in PAIRS]
    assert ask(loaded, template=template) == pytest.approx(expected, rel=1e-6, abs=1e-4)
    assert all(plain(loaded, *pair, template)[1] < -1e-2 for pair in PAIRS)  # the end token would show


def test_batch_and_order_change_nothing(loaded):
    whole = ask(loaded)
    assert ask(loaded, batch_tokens=1) == pytest.approx(whole, rel=1e-6, abs=1e-4)
    assert ask(loaded, PAIRS[::-1]) == pytest.approx(whole[::-1], rel=1e-6, abs=1e-4)
    assert ask(loaded, PAIRS * 3) == pytest.approx(whole * 3, rel=1e-6, abs=1e-4)


def test_an_empty_continuation_is_certain(loaded):
    assert ask(loaded, [PAIRS[0], (PAIRS[0][0], "")]) == pytest.approx([ask(loaded)[0], 0.0], abs=1e-4)


def test_white_space_around_an_answer_is_no_part_of_it(loaded):
    messages, text = PAIRS[1]
    assert ask(loaded, [(messages, f" {text}\n")]) == pytest.approx(ask(loaded, [PAIRS[1]]), abs=1e-4)


def test_a_pair_over_the_context_fails_alone(loaded):
    fine, refused = ask(loaded, [PAIRS[0], (PAIRS[0][0], "why " * 600)])
    assert fine == pytest.approx(ask(loaded)[0], abs=1e-4)
    assert isinstance(refused, ProviderError)
    assert refused.reason == "context_length"


def test_a_diverged_model_has_no_likelihoods(loaded):
    model, _ = loaded
    norm = model.model.norm.weight
    kept = norm.data.clone()
    norm.data.fill_(float("nan"))
    try:
        refused = ask(loaded)
    finally:
        norm.data.copy_(kept)
    assert [each.reason for each in refused] == ["not_finite"] * len(PAIRS)


def test_progress_ends_with_every_pair(loaded):
    told: list[int] = []
    ask(loaded, batch_tokens=64, watch=told.append)
    assert told == sorted(told)
    assert told[-1] == len(PAIRS)


def test_nothing_asked_is_nothing_answered(loaded):
    assert ask(loaded, []) == []


def test_each_token_has_its_logprob_and_whether_it_is_the_models_own_choice(loaded):
    import torch

    from distill.models.likelihood import loglikelihoods

    model, tokenizer = loaded
    messages, continuation = PAIRS[1]
    (found,) = loglikelihoods(model, tokenizer, "chatml", [PAIRS[1]])
    start = len(chat_template.prompt_ids(messages, "chatml", tokenizer))
    ids = chat_template.encode([*messages, Message("assistant", continuation)], "chatml", tokenizer).input_ids[:-1]
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    assert found.logprobs == pytest.approx([float(logs[at - 1, ids[at]]) for at in range(start, len(ids))], abs=1e-4)
    assert found.agrees == tuple(int(logs[at - 1].argmax()) == ids[at] for at in range(start, len(ids)))


@pytest.mark.parametrize("template", ["chatml", "alpaca", "vicuna", "own"])
def test_tokens_are_as_wide_as_what_they_spell(loaded, template):
    from distill.models.likelihood import loglikelihoods

    found = loglikelihoods(*loaded, template, PAIRS)
    space = template == "vicuna"  # before each answer
    assert [sum(one.widths) for one in found] == [space + len(answer) for _, answer in PAIRS]
    assert [len(one.widths) for one in found] == [len(one.logprobs) for one in found]
