"""Filters of duplicates: exact, near, MinHash and by meaning; which row of a cluster stays."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.curate.filters.exact_duplicate import ExactDuplicate
from distill.curate.filters.minhash import HASHES, MOST_MISSED, MinHash, bands_and_rows
from distill.curate.filters.near_duplicate import NearDuplicate
from distill.curate.filters.semantic_duplicate import SemanticDuplicate, greedy
from distill.errors import ModelError
from distill.types import Message, Session
from tests.support.set_filters import SEEDS, WORDS, kept, session, sessions, text

EXACT = ExactDuplicate(ExactDuplicate.Options())


NEAR = NearDuplicate(NearDuplicate.Options())


def variants(rng: random.Random, count: int) -> list[str]:
    """Texts that are all near each other: each differs from the first in its last word alone."""
    common = text(rng)
    return [f"{common} {word}" for word in rng.sample(WORDS, count)]


def shingles(prompt: str, size: int = 3) -> set[tuple[str, ...]]:
    words = prompt.split()
    return {tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def jaccard(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


# --- exact_duplicate and near_duplicate


@given(st.lists(st.sampled_from(["Why?", "why? ", "WHY?", "How?", "how?", "Who?"]), max_size=20), st.randoms())
def test_of_equal_texts_one_stays_in_any_order(prompts, rng):
    rng.shuffle(prompts)
    rows = sessions(*prompts)
    stay = [row.messages[0].content.lower().strip() for row in rows if row.id in kept(EXACT, rows)]
    assert sorted(stay) == sorted({prompt.lower().strip() for prompt in prompts})


@pytest.mark.parametrize("rule", [EXACT, NEAR], ids=["exact", "near"])
@given(seed=SEEDS, before=st.integers(0, 12), behind=st.integers(0, 12))
def test_rows_behind_change_no_duplicate_before_them(rule, seed, before, behind):
    rng = random.Random(seed)
    chain = [" ".join(WORDS[start : start + 12]) for start in range(13)]
    rows = sessions(*(rng.choice(chain) for _ in range(before + behind)))
    assert rule.decide_all(rows)[:before] == rule.decide_all(rows[:before])


# --- minhash


def test_a_dropped_row_names_a_kept_one_and_the_true_jaccard_index():
    prompts = ["one two three four five six seven eight", "Hello", "one two three four five six seven NINE!"]
    rows = sessions(*prompts)
    found = MinHash(MinHash.Options(jaccard=0.7)).decide_all(rows)
    assert [each.keep for each in found] == [True, True, False]
    assert (found[2].value, found[2].threshold, found[2].neighbour) == (round(5 / 7, 4), 0.7, "s0")


@pytest.mark.parametrize("rule", [NEAR, MinHash(MinHash.Options())], ids=["near", "minhash"])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_of_each_cluster_exactly_the_first_stays_in_any_order(rule, seed, sizes):
    rng = random.Random(seed)
    clusters = [variants(rng, size) for size in sizes]
    rows = [session(f"{c}-{n}", prompt) for c, some in enumerate(clusters) for n, prompt in enumerate(some)]
    rng.shuffle(rows)
    first = {row.id.split("-")[0]: row.id for row in reversed(rows)}
    assert sorted(kept(rule, rows)) == sorted(first.values())


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 12), st.integers(0, 12))
def test_rows_behind_change_no_verdict_before_them(seed, before, behind):
    rng = random.Random(seed)
    chain = [" ".join(WORDS[start : start + 12]) for start in range(13)]
    rows = sessions(*(rng.choice(chain) for _ in range(before + behind)))
    rule = MinHash(MinHash.Options(jaccard=0.6))
    assert rule.decide_all(rows)[:before] == rule.decide_all(rows[:before])


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_rows_of_other_kinds_may_stand_anywhere_between(seed):
    rng = random.Random(seed)
    chain = [session(f"c{start}", " ".join(WORDS[start : start + 12])) for start in range(8)]
    others = [session(f"o{number}", text(rng)) for number in range(8)]
    rule = MinHash(MinHash.Options(jaccard=0.6))
    places = sorted(rng.sample(range(16), 8))
    mixed: list[Session] = list(others)
    for place, row in zip(places, chain, strict=True):
        mixed.insert(place, row)
    assert [id for id in kept(rule, mixed) if id.startswith("c")] == kept(rule, chain)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.3, 0.95))
def test_every_drop_has_a_kept_neighbour_at_the_threshold_or_above(seed, threshold):
    rng = random.Random(seed)
    base = text(rng, 20).split()
    prompts = [" ".join(rng.choice(WORDS) if rng.random() < 0.1 else word for word in base) for _ in range(30)]
    rows = sessions(*prompts)
    found = MinHash(MinHash.Options(jaccard=threshold)).decide_all(rows)
    stay = {row.id: row.messages[0].content for row, each in zip(rows, found, strict=True) if each.keep}
    for row, each in zip(rows, found, strict=True):
        if not each.keep:
            assert each.value == round(jaccard(stay[each.neighbour], row.messages[0].content), 4)
            assert each.value >= round(threshold, 4)


def test_almost_no_pair_above_the_threshold_is_missed():
    rng = random.Random(7)
    pairs = []
    while len(pairs) < 300:
        one = text(rng, 30).split()
        other = " ".join(rng.choice(WORDS) if rng.random() < 0.04 else word for word in one)
        if jaccard(" ".join(one), other) >= 0.7:
            pairs.append((" ".join(one), other))
    rows = sessions(*(prompt for pair in pairs for prompt in pair))
    missed = len(kept(MinHash(MinHash.Options()), rows)) - len(pairs)
    assert missed <= 2 * MOST_MISSED * len(pairs)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_99_of_100_pairs_at_the_threshold(threshold):
    bands, rows = bands_and_rows(threshold)
    assert bands * rows <= HASHES
    assert (1 - threshold**rows) ** bands <= MOST_MISSED


def test_texts_without_words_are_no_duplicates_and_short_ones_only_of_themselves():
    assert kept(MinHash(MinHash.Options()), sessions("", "...", "a", "a b", "A.", "")) == ["s0", "s1", "s2", "s3", "s5"]


def test_characters_serve_for_texts_without_spaces():
    rows = sessions("我今天早上在公园里看见了三只白色的小猫", "我今天早上在公园里看见了四只白色的小猫", "河流")
    rule = MinHash(MinHash.Options(shingle="chars", size=2, jaccard=0.7))
    assert kept(rule, rows) == ["s0", "s2"]


def test_no_rows_are_no_verdicts():
    assert MinHash(MinHash.Options()).decide_all([]) == []


# --- semantic_duplicate


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 600), st.floats(0.1, 0.99))
def test_meaning_is_compared_with_kept_rows_alone_and_across_blocks(seed, count, threshold):
    import numpy as np

    rows = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = greedy(rows, threshold)
    stay: list[int] = []
    for place, (cosine, near) in enumerate(found):
        best = max((float(rows[place] @ rows[other]) for other in stay), default=0.0)
        assert cosine == pytest.approx(best, abs=1e-5)
        assert not stay or near in stay
        if cosine < threshold:
            stay.append(place)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.lists(st.integers(1, 4), min_size=1, max_size=200))
def test_of_each_group_of_one_meaning_exactly_the_first_stays_in_any_order(seed, sizes):
    import numpy as np

    rng = np.random.default_rng(seed)
    meanings = np.eye(len(sizes), dtype=np.float32)
    order = rng.permutation([group for group, size in enumerate(sizes) for _ in range(size)])
    found = greedy(meanings[order], 0.9)
    stay = [place for place, (cosine, _) in enumerate(found) if cosine < 0.9]
    assert stay == sorted({int(group): place for place, group in reversed([*enumerate(order)])}.values())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random sentence encoder, as a folder of safetensors."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {word: place for place, word in enumerate(["[UNK]", "[PAD]", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_same_meaning_is_dropped_whatever_stands_beside_it(encoder):
    rng = random.Random(5)
    prompts = [text(rng, 6), text(rng, 30), text(rng, 12)]
    rows = sessions(*prompts, prompts[0], prompts[2])
    found = SemanticDuplicate(SemanticDuplicate.Options(model=str(encoder), cosine=0.9999)).decide_all(rows)
    assert [each.keep for each in found] == [True, True, True, False, False]
    assert [each.neighbour for each in found[3:]] == ["s0", "s2"]
    assert found[3].value == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("files", [[], ["config.json"], ["config.json", "pytorch_model.bin"]])
def test_a_folder_without_safetensors_is_one_line(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=r"lacks config\.json or \*\.safetensors"):
        SemanticDuplicate(SemanticDuplicate.Options(model=str(tmp_path))).decide_all(sessions("a"))


# --- prompts of one template


@pytest.mark.parametrize("rule", [NEAR, MinHash(MinHash.Options())], ids=["near", "minhash"])
@pytest.mark.parametrize(
    "frame", ["Translate the sentence below into Greek: {}", "{} Answer with one word, yes or no."]
)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_a_frame_around_all_prompts_changes_no_verdict(rule, frame, seed):
    rng = random.Random(seed)
    base = [text(rng, 8) for _ in range(12)]
    prompts = base + [" ".join([*rng.choice(base).split()[:-1], word]) for word in rng.sample(WORDS, 8)]
    framed = sessions(*map(frame.format, prompts))
    assert kept(rule, framed) == kept(rule, sessions(*prompts))
    systems = [replace(row, messages=(Message("system", "Be brief."), *row.messages)) for row in framed]
    assert kept(rule, systems) == kept(rule, framed)


@pytest.mark.parametrize("rule", [NEAR, MinHash(MinHash.Options())], ids=["near", "minhash"])
def test_equal_contents_of_one_template_are_duplicates_and_of_two_are_not(rule):
    texts = [text(random.Random(seed), 5) for seed in range(12)]
    frames = ("Translate the sentence below into Greek: {}", "Is this sentence positive or negative? {}")
    rows = sessions(*(frame.format(one) for frame in frames for one in texts), frames[0].format(texts[3].upper()))
    assert kept(rule, rows) == [row.id for row in rows[:-1]]


def test_the_answer_counts_beside_a_framed_prompt():
    rows = [
        session(f"s{number}", f"Translate the word below into Greek: w{number % 12}", f"Answer {number // 18}.")
        for number in range(24)
    ]
    rule = NearDuplicate(NearDuplicate.Options(on="both"))
    assert len(kept(rule, rows)) == 18
