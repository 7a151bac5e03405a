"""Answers of a model in this process: right by the library's own, and the same in any company."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest

from distill.engine.providers import ProviderError, Reply
from distill.types import Message, Request, Sampling
from tests.support.loud import load_loud

pytestmark = pytest.mark.model

QUESTIONS = (
    "Why?",
    "Tell me about the sea.",
    "Name three green things that grow in a garden, and say of each why you like it.",
    "Who wrote this?",
    "How long is a river, how deep is a lake, and how wide is the ocean between two continents?",
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A random model whose logits are far enough apart to have a nucleus, and its tokenizer."""
    return load_loud(tmp_path_factory.mktemp("tiny"))


def requests(sampling: Sampling, questions=QUESTIONS) -> list[Request]:
    return [Request(role="base", messages=(Message("user", text),), sampling=sampling) for text in questions]


def ask(loaded, asked, **options):
    from distill.models.generation import answer

    return answer(*loaded, "chatml", asked, **options)


def texts(replies) -> list[str]:
    assert all(isinstance(reply, Reply) for reply in replies)
    return [reply.text for reply in replies]


SAMPLED = Sampling(temperature=0.7, top_p=0.9, max_tokens=16)


def test_greedy_answers_equal_the_librarys_own_one_by_one(loaded):
    import torch

    from distill.models import chat_template

    model, tokenizer = loaded
    replies = ask(loaded, requests(Sampling(temperature=0, max_tokens=12)))
    for question, reply in zip(QUESTIONS, replies, strict=True):
        ids = torch.tensor([chat_template.prompt_ids((Message("user", question),), "chatml", tokenizer)])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        assert reply.text == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_common_model_is_found_to_be_one_that_can_be_batched(loaded):
    from distill.models.alone import can_batch
    from distill.models.continuous_batching import _OpenBatch
    from distill.models.generation import Batch

    assert [can_batch(loaded[0], kind) for kind in (Batch, _OpenBatch)] == [True, True]


def test_an_answer_depends_neither_on_its_batch_nor_on_the_order(loaded):
    asked = requests(SAMPLED)
    together = texts(ask(loaded, asked))
    assert len(set(together)) == len(asked)
    assert texts(ask(loaded, asked, batch_size=1)) == together
    assert texts(ask(loaded, asked, batch_size=2)) == together
    assert texts(ask(loaded, asked[::-1])) == together[::-1]


def test_another_seed_or_replica_draws_another_answer_and_another_role_the_same(loaded):
    (asked,) = requests(SAMPLED, QUESTIONS[:1])
    (first,) = texts(ask(loaded, [asked]))
    assert texts(ask(loaded, [replace(asked, role="student")])) == [first]
    assert texts(ask(loaded, [replace(asked, replica=1)])) != [first]
    assert texts(ask(loaded, [asked], seed=1)) != [first]
    assert texts(ask(loaded, [replace(asked, sampling=replace(SAMPLED, seed=1))])) != [first]


def test_rows_that_finish_leave_the_others_as_they_were(loaded):
    asked = [
        replace(request, sampling=replace(SAMPLED, max_tokens=1 + 5 * number))
        for number, request in enumerate(requests(SAMPLED))
    ]
    alone = [texts(ask(loaded, [request]))[0] for request in asked]
    assert texts(ask(loaded, asked)) == alone


def test_the_cache_grows_beyond_its_first_room(loaded):
    import torch

    from distill.models.generation import GROWTH

    model, tokenizer = loaded
    (reply,) = ask(loaded, requests(Sampling(temperature=0, max_tokens=3 * GROWTH), QUESTIONS[:1]))
    ids = torch.tensor([tokenizer.encode("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")])
    whole = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=3 * GROWTH, pad_token_id=0
    )
    assert reply.text == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)


def test_an_answer_at_its_bound_is_cut_and_counted(loaded):
    (reply,) = ask(loaded, requests(Sampling(temperature=0, max_tokens=3), QUESTIONS[:1]))
    assert (reply.finish, reply.usage.completion_tokens) == ("length", 3)


def test_an_end_token_stops_the_answer_and_is_not_in_it(loaded):
    model, tokenizer = loaded
    (whole,) = ask(loaded, requests(Sampling(temperature=0, max_tokens=8), QUESTIONS[1:2]))
    first = tokenizer.encode(whole.text, add_special_tokens=False)[0]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [before, first]
    try:
        (reply,) = ask(loaded, requests(Sampling(temperature=0, max_tokens=8), QUESTIONS[1:2]))
    finally:
        model.generation_config.eos_token_id = before
    assert (reply.text, reply.finish, reply.usage.completion_tokens) == ("", "stop", 1)


def test_a_stop_string_ends_the_answer_before_it(loaded):
    (whole,) = ask(loaded, requests(SAMPLED, QUESTIONS[1:2]))
    stop = whole.text[10:14]
    (reply,) = ask(loaded, requests(replace(SAMPLED, stop=("never said", stop)), QUESTIONS[1:2]))
    assert (reply.text, reply.finish) == (whole.text[: whole.text.index(stop)], "stop")
    assert reply.usage.completion_tokens < whole.usage.completion_tokens


def test_a_prompt_over_the_context_fails_alone(loaded):
    short, long = requests(SAMPLED, ("Why?", "why " * 600))
    fine, refused = ask(loaded, [short, long])
    assert texts([fine]) == texts(ask(loaded, [short]))
    assert isinstance(refused, ProviderError)
    assert (refused.reason, refused.transient, refused.fatal) == ("context_length", False, False)


def test_an_answer_ends_where_the_context_does(loaded):
    (reply,) = ask(loaded, requests(Sampling(temperature=0, max_tokens=1000), ("why " * 480,)))
    assert reply.finish == "length"
    assert reply.usage.prompt_tokens + reply.usage.completion_tokens == 512


def test_a_raw_prompt_is_taken_as_it_stands(loaded):
    asked = [
        Request(role="base", prompt="1. A\n2.", sampling=SAMPLED),
        Request(role="base", prompt="", sampling=SAMPLED),
    ]
    fine, empty = ask(loaded, asked)
    assert fine.usage.prompt_tokens == len(loaded[1].encode("1. A\n2."))
    assert empty.reason == "empty_prompt"


def test_a_diverged_model_is_an_error_and_not_an_answer(loaded):
    model, _ = loaded
    norm = model.model.norm.weight
    kept = norm.data.clone()
    norm.data.fill_(float("nan"))
    try:
        replies = ask(loaded, requests(SAMPLED))
    finally:
        norm.data.copy_(kept)
    assert [reply.reason for reply in replies] == ["not_finite"] * len(QUESTIONS)


def test_a_frequency_penalty_keeps_a_model_from_repeating_itself(loaded):
    model, _ = loaded
    kept = model.lm_head.weight
    model.lm_head.weight = model.get_input_embeddings().weight  # now it says what it has just read, for ever
    try:
        plain = Sampling(temperature=0, max_tokens=12)
        (looping,) = ask(loaded, requests(plain, QUESTIONS[:1]))
        (held,) = ask(loaded, requests(replace(plain, frequency_penalty=2.0), QUESTIONS[:1]))
    finally:
        model.lm_head.weight = kept
    assert looping.text == looping.text[0] * 12
    assert len(set(loaded[1].encode(held.text))) > 6


def test_progress_is_told_after_every_step(loaded):
    told: list[tuple[int, int]] = []
    asked = [replace(request, sampling=Sampling(temperature=0, max_tokens=4)) for request in requests(SAMPLED)[:2]]
    replies = ask(loaded, asked, watch=lambda done, tokens: told.append((done, tokens)))
    assert [reply.usage.completion_tokens for reply in replies] == [4, 4]
    assert told == [(0, 2), (1, 4), (1, 6), (2, 8)]


def test_an_id_that_no_token_has_is_never_drawn(loaded):
    """Models have more rows than their tokenizers have tokens, for speed."""
    import copy

    import torch

    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    asked, head = requests(Sampling(temperature=0, max_tokens=8)), model.lm_head.weight
    model.lm_head.weight = torch.nn.Parameter(torch.cat([head, 100 * head[:64], -100 * head[:64]]))
    assert ask((model, tokenizer), asked) == ask(loaded, asked)


def test_nothing_asked_is_nothing_answered(loaded):
    assert ask(loaded, []) == []


# Drawing


def frequencies(sampling: Sampling, logits, draws: int = 2_000):
    """How often each token comes for uniforms that are spread evenly."""
    import torch

    from distill.models.generation import draw

    rows = torch.tensor([logits]).expand(draws, -1)
    tokens = draw(rows, [sampling] * draws, [(number + 0.5) / draws for number in range(draws)])
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)) / draws


LOGITS = [1.0, 3.0, 0.5, 2.0, -1.0, 2.5]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_with_the_probabilities_of_the_softmax(temperature):
    import torch

    expected = torch.softmax(torch.tensor(LOGITS) / temperature, 0)
    assert torch.allclose(frequencies(Sampling(temperature=temperature), LOGITS), expected, atol=1e-3)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.8, 0.95, 0.9999])
def test_a_nucleus_is_the_librarys(top_p):
    import torch
    from transformers import TopPLogitsWarper

    warped = TopPLogitsWarper(top_p)(None, torch.tensor([LOGITS]) / 0.7)
    expected = torch.softmax(warped, -1)[0]
    assert torch.allclose(frequencies(Sampling(temperature=0.7, top_p=top_p), LOGITS), expected, atol=1e-3)


def test_a_nucleus_wider_than_the_first_candidates_is_found_whole():
    found = frequencies(Sampling(top_p=0.5), [0.0] * 1_000)
    assert int((found > 0).sum()) == 500


def test_temperature_zero_takes_the_greatest_and_none_is_one():
    import torch

    assert frequencies(Sampling(temperature=0, top_p=0.5), LOGITS, 10)[1] == 1
    assert torch.equal(
        frequencies(Sampling(), LOGITS, 100), frequencies(Sampling(temperature=1.0, top_p=1.0), LOGITS, 100)
    )


def test_each_row_is_drawn_by_its_own_sampling():
    import torch

    from distill.models.generation import draw

    kinds = [Sampling(temperature=0), Sampling(), Sampling(top_p=0.1), Sampling(temperature=5.0)]
    logits = torch.tensor([LOGITS] * 4)
    together = draw(logits, kinds, [0.99] * 4)
    assert together == [draw(logits[:1], [kind], [0.99])[0] for kind in kinds]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0, max_tokens=12), SAMPLED])
def test_an_id_that_is_no_token_is_never_drawn(loaded, sampling):
    import copy

    import torch

    model, tokenizer = loaded
    wide = copy.deepcopy(model)
    for layer in (wide.lm_head, wide.model.embed_tokens):
        layer.weight = torch.nn.Parameter(torch.cat([layer.weight, 9 * layer.weight[:200]]).detach())
    expected = texts(ask(loaded, requests(sampling)))
    assert texts(ask((wide, tokenizer), requests(sampling))) == expected
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens([f"[more {number}]" for number in range(200)])
    assert texts(ask((wide, longer), requests(sampling))) != expected


def test_ids_that_are_no_token_are_neither_drawn_nor_scored(loaded):
    """As of a model whose embeddings are padded to a round number."""
    import torch

    from distill.models.generation import GenerationRow, draw_rows
    from distill.models.token_scores import token_ids

    tokens = token_ids(loaded[1])
    logits = torch.zeros(1, len(tokens) + 8)
    logits[0, 7], logits[0, len(tokens) :] = 5.0, 50.0
    logits[0, -1] = torch.nan
    row = GenerationRow(Sampling(temperature=0.0), Random(), frozenset(), loaded[1], limit=2, top=2)
    assert draw_rows([row], logits) == row.new == [7]
    assert {id_ for id_, _ in row.scores[0].top} <= tokens
    assert row.scores[0].logprob == pytest.approx(5 - math.log(math.exp(5) + len(tokens) - 1), abs=1e-4)
