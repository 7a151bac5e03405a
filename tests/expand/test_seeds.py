"""The shipped seed tasks: how many, of which kinds, and how unlike each other."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from distill.core import assets
from distill.core.jsonl import read_jsonl
from distill.text.tokens import rouge_l, rouge_tokens

SEEDS = list(read_jsonl(assets.find("prompts/seeds/general.jsonl")))


def test_there_are_at_least_175_seeds_with_the_fields_of_self_instruct():
    assert len(SEEDS) >= 175
    assert {tuple(seed) for seed in SEEDS} == {("id", "name", "instruction", "instances", "is_classification")}


@pytest.mark.parametrize("field", ["id", "name", "instruction"])
def test_ids_names_and_instructions_are_unique(field):
    assert [value for value, count in Counter(seed[field] for seed in SEEDS).items() if count > 1] == []


def test_there_are_at_least_ten_of_each_kind_and_eleven_kinds():
    kinds = Counter(seed["id"].rpartition("-")[0] for seed in SEEDS)
    assert len(kinds) >= 11
    assert min(kinds.values()) >= 10


def test_at_least_25_are_classification():
    assert sum(seed["is_classification"] for seed in SEEDS) >= 25


def test_at_least_40_percent_have_an_input():
    with_input = sum(all(instance["input"] for instance in seed["instances"]) for seed in SEEDS)
    assert with_input / len(SEEDS) >= 0.4


def test_every_instance_has_an_output():
    assert [seed["id"] for seed in SEEDS if not seed["instances"]] == []
    empty = [seed["id"] for seed in SEEDS for instance in seed["instances"] if not instance["output"].strip()]
    assert empty == []


def test_no_two_instructions_are_over_rouge_l_half():
    tokens = {seed["id"]: rouge_tokens(seed["instruction"]) for seed in SEEDS}
    near = [(a, b) for a, b in combinations(tokens, 2) if rouge_l(tokens[a], tokens[b]) > 0.5]
    assert near == []


def test_instructions_are_of_a_length_that_self_instruct_keeps():
    assert [seed["id"] for seed in SEEDS if not 3 < len(seed["instruction"].split()) <= 150] == []
