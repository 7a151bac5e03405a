"""Set filters that ask no model: which row of a cluster stays, that order decides ties alone, and what is chosen."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distill.curate.filters.exact_duplicate import ExactDuplicate
from distill.curate.filters.minhash import HASHES, MOST_MISSED, MinHash, bands_and_rows
from distill.curate.filters.near_duplicate import NearDuplicate
from distill.curate.filters.quota import Quota
from distill.curate.filters.selection import Selection, farthest_first, vectors
from distill.curate.filters.semantic_duplicate import SemanticDuplicate, greedy
from distill.errors import ModelError, RecipeError
from distill.pipeline.parts import load_recipe
from distill.types import Message, Session

WORDS = [
    f"{first}{second}" for first in ("ra", "le", "mo", "ti", "su") for second in ("ban", "der", "fin", "gol", "ket")
]

SEEDS = st.integers(0, 2**32)
EXACT = ExactDuplicate(ExactDuplicate.Options())
NEAR = NearDuplicate(NearDuplicate.Options())


def session(id: str, prompt: str, answer: str = "The Danube.", **meta) -> Session:
    return Session(id, (Message("user", prompt), Message("assistant", answer)), meta)


def sessions(*prompts: str) -> list[Session]:
    return [session(f"s{number}", prompt) for number, prompt in enumerate(prompts)]


def text(rng: random.Random, words: int = 40) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def variants(rng: random.Random, count: int) -> list[str]:
    """Texts that are all near each other: each differs from the first in its last word alone."""
    common = text(rng)
    return [f"{common} {word}" for word in rng.sample(WORDS, count)]


def kept(rule, rows: list[Session]) -> list[str]:
    return [row.id for row, found in zip(rows, rule.decide_all(rows), strict=True) if found.keep]


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


# --- quota


def test_of_each_group_the_first_rows_stay():
    rows = [session(f"s{number}", "Hi", source="ab"[number % 2]) for number in range(7)]
    found = Quota(Quota.Options(most=2)).decide_all(rows)
    assert [(each.keep, each.value, each.threshold) for each in found[:5]] == [
        *((True, place, 2) for place in (1, 1, 2, 2)),
        (False, 3, 2),
    ]
    assert kept(Quota(Quota.Options(most=2)), rows) == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize(("missing", "count"), [("keep", 4), ("group", 1)])
def test_rows_without_the_key_are_free_or_a_group(missing, count):
    assert len(kept(Quota(Quota.Options(by="topic", most=1, missing=missing)), sessions(*"abcd"))) == count


def test_a_quota_without_a_bound_is_an_error():
    with pytest.raises(ValidationError, match="give `most`"):
        Quota.Options()


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 9), st.floats(0.01, 1))
def test_no_group_is_above_its_quota_and_none_is_emptied(groups, most, share):
    rows = [session(f"s{number}", "Hi", source=group) for number, group in enumerate(groups)]
    stay = [row.meta["source"] for row in rows if row.id in kept(Quota(Quota.Options(most=most, share=share)), rows)]
    bound = min(most, max(1, int(share * len(rows))))
    assert {group: stay.count(group) for group in stay} == {g: min(bound, groups.count(g)) for g in groups}


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 9), st.randoms())
def test_as_many_of_each_group_stay_in_any_order(groups, most, rng):
    rows = [session(f"s{number}", "Hi", source=group) for number, group in enumerate(groups)]
    counts = []
    for _ in range(2):
        stay = kept(Quota(Quota.Options(most=most)), rows)
        counts.append(Counter(row.meta["source"] for row in rows if row.id in stay))
        rng.shuffle(rows)
    assert counts[0] == counts[1]


# --- selection


def test_exactly_so_many_rows_are_chosen_and_each_other_names_one():
    rng = random.Random(1)
    rows = sessions(*(text(rng, 9) for _ in range(60)))
    found = Selection(Selection.Options(count=12)).decide_all(rows)
    stay = {row.id for row, each in zip(rows, found, strict=True) if each.keep}
    assert len(stay) == 12
    assert all(each.neighbour in stay for each in found if not each.keep)


def test_of_three_topics_one_row_each_is_chosen():
    topics = ("river boat water bridge", "violin concert music choir", "bread oven flour butter")
    rows = sessions(*(f"{topic} {number}" for topic, number in itertools.product(topics, ("one", "two", "six"))))
    assert {int(id[1:]) // 3 for id in kept(Selection(Selection.Options(count=3)), rows)} == {0, 1, 2}


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 30))
def test_the_same_rows_in_another_order_give_the_same_set(seed, count):
    rng = random.Random(seed)
    rows = [session(f"s{number}", f"{text(rng, 12)} n{number}") for number in range(30)]
    rule = Selection(Selection.Options(count=count))
    before = set(kept(rule, rows))
    rng.shuffle(rows)
    assert set(kept(rule, rows)) == before


def test_the_lazy_choice_is_the_plain_one():
    rng = random.Random(3)
    texts = [text(rng, 10) for _ in range(200)]
    rows = vectors([each.split() for each in texts])
    chosen, _, _ = farthest_first(rows, texts, 40)
    plain = chosen[:1]
    while len(plain) < 40:
        nearest = (rows @ rows[plain].T).max(axis=1)
        nearest[plain] = float("inf")
        plain.append(min(range(200), key=lambda place: (nearest[place], texts[place])))
    assert chosen == plain


def test_the_set_of_thousands_is_the_same_in_another_order():
    rng = random.Random(8)
    words = [f"{first}{second}" for first in WORDS for second in WORDS]
    texts = list(dict.fromkeys(" ".join(rng.choices(words[:120], k=rng.randint(1, 12))) for _ in range(4000)))
    found = []
    for _ in range(2):
        chosen, cosines, _ = farthest_first(vectors([each.split() for each in texts]), texts, 300)
        found.append(([texts[place] for place in chosen], dict(zip(texts, cosines.tolist(), strict=True))))
        rng.shuffle(texts)
    assert found[0] == found[1]


def test_answers_outside_the_window_are_dropped_first():
    rows = [session(f"s{n}", f"prompt {n}", "x" * n) for n in range(1, 8)]
    found = Selection(Selection.Options(count=9, min_chars=3, max_chars=5)).decide_all(rows)
    assert [each.reason for each in found] == [*["too_few_chars"] * 2, *["ok"] * 3, *["too_many_chars"] * 2]


@pytest.mark.parametrize("prompts", [[], ["same"] * 9, [""] * 9])
def test_rows_that_cannot_be_told_apart_are_chosen_all_the_same(prompts):
    assert len(kept(Selection(Selection.Options(count=4)), sessions(*prompts))) == min(4, len(prompts))


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


# --- paths in a recipe


def recipe(folder, **rule):
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"name": "own", "curate": [rule]}))
    return path


def test_a_rule_finds_its_files_beside_the_recipe_and_notices_a_change(tmp_path):
    (tmp_path / "bench.jsonl").write_text("{}\n")
    loaded = load_recipe(recipe(tmp_path, filter="contamination", files=["bench.jsonl"]))
    assert loaded.curate[0].options.files == [str(tmp_path / "bench.jsonl")]
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(loaded.to_yaml())
    assert load_recipe(resolved).document() == loaded.document()
    (tmp_path / "bench.jsonl").write_text('{"text": "more"}\n')
    with pytest.raises(RecipeError, match="has changed since this recipe was resolved"):
        load_recipe(resolved)


def test_a_rule_may_name_a_folder_or_an_embedded_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    loaded = load_recipe(recipe(tmp_path, filter="semantic_duplicate", model="model"))
    assert loaded.curate[0].options.model == str(tmp_path / "model")
    assert [*loaded.files] == [str(tmp_path / "model")]
    loaded = load_recipe(recipe(tmp_path, filter="length", max_tokens=9, tokenizer="smollm2"))
    assert (loaded.curate[0].options.tokenizer, loaded.files) == ("smollm2", {})


def test_a_missing_file_of_a_rule_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match=r"curate\.contamination\.files: no file none\.jsonl"):
        load_recipe(recipe(tmp_path, filter="contamination", files=["none.jsonl"]))


def test_a_rule_s_path_that_is_set_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    (here / "own.txt").write_text("one\n")
    monkeypatch.chdir(here)
    path = recipe(tmp_path, filter="contamination", files=["missing"])
    loaded = load_recipe(path, overrides=["curate.contamination.files=[own.txt]"])
    assert loaded.curate[0].options.files == [str(here / "own.txt")]


def test_on_is_a_key_and_no_a_language(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: own\ncurate:\n- {filter: language, on: both, keep: [no, en]}\n- {filter: truncated, drop: yes}\n"
    )
    language, truncated = (rule.options for rule in load_recipe(path).curate)
    assert (language.on, language.keep, truncated.drop) == ("both", ("no", "en"), True)
